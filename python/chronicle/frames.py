"""Messages as tables: Arrow, Polars, pandas.

`Queue.to_arrow` and its kin find the messages and bring them here as NumPy views of the mapped
file. A record in a queue is its header and its payload, one behind the other, so a field is a
column with gaps between its values. What that means for copies:

- NumPy and pandas know such columns (strides): `Queue.to_numpy`, and in `Queue.to_pandas` each
  column of plain numbers, are views of the file, without a copy, while the range stands in one
  segment and is one run of one type. Otherwise each value is copied once.
- Arrow and Polars know no strides: each value is copied once, out of the file into its column.

How values are mapped:

===================  ==========================  ==========================
field                Arrow (and Polars)          pandas
===================  ==========================  ==========================
numbers, bool        the same                    the same
``Scale(n)``         decimal128                  decimal128 (``ArrowDtype``)
`Chars`              string                      string
`Array`              fixed-size list             fixed-size list (``ArrowDtype``)
``_seq``             uint64                      uint64
``_timestamp``       timestamp[ns, UTC]          datetime64[ns, UTC]
===================  ==========================  ==========================
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from chronicle.errors import BadArgument, DecodeError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    from numpy.typing import NDArray

    from chronicle.message import Field, MessageBase

__all__ = ["Block", "Scaled", "Text", "to_arrow", "to_numpy", "to_pandas", "to_polars"]

#: What becomes of integers with implied decimals.
Scaled: TypeAlias = Literal["decimal", "float", "raw"]
#: What becomes of text.
Text: TypeAlias = Literal["str", "bytes"]
#: Payloads and headers of a run of messages, as views.
Block: TypeAlias = "tuple[NDArray[Any], NDArray[Any]]"

SEQ: Final = "_seq"
TIMESTAMP: Final = "_timestamp"

_INT64_MAX: Final = (1 << 63) - 1
#: Decimal digits of the numbers' ranges.
_DIGITS: Final = {
    "i8": 3,
    "i16": 5,
    "i32": 10,
    "i64": 19,
    "u8": 3,
    "u16": 5,
    "u32": 10,
    "u64": 20,
}


def load(module: str) -> Any:
    """Import a library that the user may not have.

    Raises
    ------
    BadArgument
        If it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise BadArgument(
            f"this needs {module}, which is not installed; "
            "install the extra: pip install 'chronicle-python[frames]'"
        ) from None


def check(scaled: str, text: str) -> None:
    """Refuse options that do not exist.

    Raises
    ------
    BadArgument
        With those that do.
    """
    for name, value, known in (
        ("scaled", scaled, ("decimal", "float", "raw")),
        ("text", text, ("str", "bytes")),
    ):
        if value not in known:
            raise BadArgument(f"bad {name}: found={value!r} expected=one of {', '.join(known)}")


# --- NumPy ---


def to_numpy(cls: type[MessageBase], blocks: Sequence[Block]) -> NDArray[Any]:
    """Return the messages as one structured array: a view if they are one block."""
    import numpy as np

    if len(blocks) == 1:
        return blocks[0][0]
    made: NDArray[Any] = np.empty(sum(len(payloads) for payloads, _ in blocks), cls.dtype)
    start = 0
    for payloads, _ in blocks:
        made[start : start + len(payloads)] = payloads
        start += len(payloads)
    made.flags.writeable = False
    return made


def _gather(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    """Copy a column's values next to each other."""
    import numpy as np

    count = sum(len(part) for part in parts)
    base = np.dtype(dtype)
    made: NDArray[Any] = np.empty((count, *base.shape), base.base)
    start = 0
    for part in parts:
        made[start : start + len(part)] = part
        start += len(part)
    return made


def _columns(
    cls: type[MessageBase], blocks: Sequence[Block]
) -> Iterator[tuple[Field, list[NDArray[Any]]]]:
    for field in cls.FIELDS:
        yield field, [payloads[field.name] for payloads, _ in blocks]


def _headers(blocks: Sequence[Block]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return sequence numbers and timestamps, copied."""
    import numpy as np

    seqs = _gather([headers["seq"] for _, headers in blocks], "<u8")
    times = _gather([headers["timestamp_ns"] for _, headers in blocks], "<u8")
    if len(times) and int(times.max()) > _INT64_MAX:
        at = int(np.argmax(times > _INT64_MAX))
        raise DecodeError(
            f"a timestamp that no table can hold: seq={seqs[at]} timestamp_ns={times[at]} "
            f"max={_INT64_MAX}; pass headers=False"
        )
    return seqs, times.view("<i8")


# --- Arrow ---


def to_arrow(
    cls: type[MessageBase], blocks: Sequence[Block], *, headers: bool, scaled: Scaled, text: Text
) -> pa.Table:
    """Return the messages as an Arrow table of one chunk. Copies each value once."""
    pa = load("pyarrow")
    check(scaled, text)
    names: list[str] = []
    arrays: list[Any] = []
    if headers:
        seqs, times = _headers(blocks)
        names += [SEQ, TIMESTAMP]
        arrays += [pa.array(seqs), pa.array(times).view(pa.timestamp("ns", "UTC"))]
    for field, parts in _columns(cls, blocks):
        names.append(field.name)
        arrays.append(_arrow_column(pa, field, parts, scaled, text))
    return pa.table(arrays, names=names)


def _arrow_column(
    pa: Any, field: Field, parts: Sequence[NDArray[Any]], scaled: Scaled, text: Text
) -> Any:
    if field.type == "chars":
        return _arrow_text(pa, field, _gather(parts, field.numpy), text)
    if field.count is None:
        return _arrow_numbers(pa, field, _gather(parts, field.numpy), scaled)
    values = _gather(parts, (field.numpy, field.count)).reshape(-1)
    flat = _arrow_numbers(pa, field, values, scaled)
    return pa.FixedSizeListArray.from_arrays(flat, field.count)


def _arrow_numbers(pa: Any, field: Field, values: NDArray[Any], scaled: Scaled) -> Any:
    if not field.scale or scaled == "raw":
        return pa.array(values)
    if scaled == "float":
        return pa.array(values / 10.0**field.scale)
    import numpy as np

    # A decimal of Arrow is an integer of 128 bits in two's complement, with a scale.
    wide = np.empty((len(values), 2), dtype="<i8")
    is_signed = field.type[0] == "i"
    wide[:, 0] = values if is_signed else values.astype("<u8").view("<i8")
    wide[:, 1] = wide[:, 0] >> 63 if is_signed else 0
    kind = pa.decimal128(max(_DIGITS[field.type], field.scale), field.scale)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(wide)])


def _arrow_text(pa: Any, field: Field, values: NDArray[Any], text: Text) -> Any:
    """Return text without its trailing NULs."""
    import numpy as np

    # NumPy's lengths are those without trailing NULs.
    lengths = np.char.str_len(values)
    letters = values.view("u1").reshape(len(values), field.size_bytes)
    if np.count_nonzero(letters) == lengths.sum():
        # No NUL stands between letters, so what remains without any is the text; three times as
        # fast as picking the bytes one by one.
        data = np.frombuffer(values.tobytes().translate(None, b"\0"), dtype="u1")
    else:
        data = letters[np.arange(field.size_bytes) < lengths[:, None]]
    if text == "str" and data.size and data.max() > 127:
        row = int(np.argmax((letters > 127).any(axis=1)))
        raise DecodeError(
            f"not ASCII: field={field.name!r} row={row} value={values[row]!r}; pass text='bytes'"
        )
    kind = pa.large_string() if text == "str" else pa.large_binary()
    offsets = np.zeros(len(values) + 1, dtype="<i8")
    np.cumsum(lengths, out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(kind, len(values), buffers)


# --- Polars and pandas ---


def to_polars(
    cls: type[MessageBase], blocks: Sequence[Block], *, headers: bool, scaled: Scaled, text: Text
) -> pl.DataFrame:
    """Return the messages as a Polars frame, which takes over the columns of an Arrow table."""
    polars = load("polars")
    table = to_arrow(cls, blocks, headers=headers, scaled=scaled, text=text)
    made: pl.DataFrame = polars.from_arrow(table)
    return made


def to_pandas(
    cls: type[MessageBase], blocks: Sequence[Block], *, headers: bool, scaled: Scaled, text: Text
) -> pd.DataFrame:
    """Return the messages as a pandas frame; plain numbers of one block are views of the file."""
    pandas = load("pandas")
    check(scaled, text)
    columns: dict[str, Any] = {}
    if headers:
        seqs, times = _headers(blocks)
        columns[SEQ] = seqs
        stamps = pandas.Series(times.view("datetime64[ns]"), copy=False)
        columns[TIMESTAMP] = stamps.dt.tz_localize("UTC")
    for field, parts in _columns(cls, blocks):
        columns[field.name] = _pandas_column(pandas, field, parts, scaled, text)
    made: pd.DataFrame = pandas.DataFrame(columns, copy=False)
    return made


def _pandas_column(
    pandas: Any, field: Field, parts: Sequence[NDArray[Any]], scaled: Scaled, text: Text
) -> Any:
    is_plain = field.type != "chars" and field.count is None
    if is_plain and (not field.scale or scaled == "raw"):
        return parts[0] if len(parts) == 1 else _gather(parts, field.numpy)
    if is_plain and scaled == "float":
        return _gather(parts, field.numpy) / 10.0 ** (field.scale or 0)
    pa = load("pyarrow")
    column = _arrow_column(pa, field, parts, scaled, text)
    if field.type == "chars" and text == "str":
        return column.to_pandas()
    return pandas.Series(pandas.arrays.ArrowExtensionArray(column), copy=False)
