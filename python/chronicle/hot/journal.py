"""What Python writes into an input journal, and how it is read: nothing in it is trusted.

The core's records (inputs, commands, events) are described in docs/internals/format.md. Here are
those that carry something for people and for `chronicle.hot.replay`: the head of a run, which queue
a source or an output stands for, and how the run ended. The first two are JSON: they are written
once per run or hand-off, and stay readable with ``chronicle tail``.

State is described by its layout, so that a difference can be named after the class has changed.
"""

from __future__ import annotations

import base64
import json
import platform
import struct
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from chronicle import _core
from chronicle.errors import DecodeError, FormatError
from chronicle.message import NUMBERS
from chronicle.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from chronicle.hot.program import Program
    from chronicle.queue import QueueReader, QueueWriter

__all__ = [
    "JOURNAL_FINAL",
    "JOURNAL_HEAD",
    "JOURNAL_OUTPUT",
    "JOURNAL_SOURCE",
    "Ended",
    "Head",
    "Place",
    "StatePart",
    "boot_id",
    "decode_final",
    "decode_hand_off",
    "decode_head",
    "decode_output",
    "encode_head",
    "encode_place",
    "layout_of_dtype",
    "state_parts",
]

JOURNAL_HEAD: Final = 65_101
"""Type id of a run's first record."""
JOURNAL_SOURCE: Final = 65_105
"""Type id of "this source number now stands for this queue"."""
JOURNAL_OUTPUT: Final = 65_106
"""Type id of "this output now writes to this queue"."""
JOURNAL_FINAL: Final = 65_107
"""Type id of a run's last record."""

FORMAT: Final = 1
_NAMES_MAX: Final = 65_536
_TEXT_MAX: Final = 65_536
_U32_MAX: Final = (1 << 32) - 1
_U64_MAX: Final = (1 << 64) - 1
#: Kind, type id, number of source or output, sequence, timestamp, clock; the core's `Input`.
_INPUT: Final = struct.Struct("<HHIQQQ")
#: How it ended, bytes of state, counters, outputs; the core's `Final`.
_FINAL: Final = struct.Struct("<IIII")
_KINDS_OF_NUMPY: Final = {"b": "bool", "i": "i", "u": "u", "f": "f"}


class Place(Value):
    """Where a source or an output stood when it was handed to the hot thread.

    Parameters
    ----------
    path
        Directory of the queue, absolute.
    queue_id
        The queue's identity: another queue at the same path has another.
    next_seq
        Of the reader, or of the writer.
    name
        Of the reader; empty for writers and readers without a name.
    epoch
        Of the writer: counts the writers that the queue has had. 0 for readers.
    tag
        Of the source; 0 without one, and for writers.
    """

    __slots__ = ("path", "queue_id", "next_seq", "name", "epoch", "tag")  # noqa: RUF023
    path: str
    queue_id: str
    next_seq: int
    name: str
    epoch: int
    tag: int

    def __init__(
        self,
        path: str,
        queue_id: str,
        next_seq: int,
        name: str = "",
        epoch: int = 0,
        tag: int = 0,
    ) -> None:
        self._set(path, queue_id, next_seq, name, epoch, tag)


class StatePart(Value):
    """One field of a state record.

    Parameters
    ----------
    name
        Of the field.
    type
        A number's name, ``chars``, ``record``, or ``bytes`` for what has no better name.
    offset
        Bytes from the start of the record that it is part of.
    size
        Bytes of one element.
    count
        Elements of an array; ``None`` if it is none.
    parts
        Fields of a ``record``.
    """

    __slots__ = ("name", "type", "offset", "size", "count", "parts")  # noqa: RUF023
    name: str
    type: str
    offset: int
    size: int
    count: int | None
    parts: tuple[StatePart, ...]

    def __init__(
        self,
        name: str,
        type: str,  # noqa: A002
        offset: int,
        size: int,
        count: int | None = None,
        parts: tuple[StatePart, ...] = (),
    ) -> None:
        self._set(name, type, offset, size, count, parts)

    @property
    def shape(self) -> tuple[object, ...]:
        """What two fields must have in common to hold the same bytes; not where they stand."""
        inner = tuple((part.name, part.offset, part.shape) for part in self.parts)
        return self.type, self.size, self.count, inner

    @property
    def size_bytes(self) -> int:
        """Bytes of all elements."""
        return self.size * (1 if self.count is None else self.count)


class Head(Value):
    """The first record of a run: everything that a replay begins with.

    Parameters
    ----------
    thread
        Name of the hot thread.
    handler
        ``module:Class``, or empty if the handler has no name that could be imported.
    program
        The program's name, for people.
    key
        Of the machine code; empty if it is not known.
    audited
        Whether the machine code was audited.
    callable
        Whether the handler was a plain Python callable.
    state
        The initial state.
    layout
        Of the state; empty if it has none.
    outputs, counters
        Names, by number.
    sources
        Sources at the start, by number.
    writers
        Outputs that had a writer at the start, by name.
    boot_id
        Of the machine: after a reboot queues may have lost what was not flushed.
    versions
        Of what the journal was written with.
    """

    __slots__ = (  # noqa: RUF023
        "thread",
        "handler",
        "program",
        "key",
        "audited",
        "callable",
        "state",
        "layout",
        "outputs",
        "counters",
        "sources",
        "writers",
        "boot_id",
        "versions",
    )
    thread: str
    handler: str
    program: str
    key: str
    audited: bool
    callable: bool
    state: bytes
    layout: tuple[StatePart, ...]
    outputs: tuple[str, ...]
    counters: tuple[str, ...]
    sources: tuple[Place, ...]
    writers: Mapping[str, Place]
    boot_id: str
    versions: Mapping[str, str]

    def __init__(
        self,
        *,
        thread: str,
        handler: str,
        program: str,
        key: str,
        audited: bool,
        callable: bool,  # noqa: A002
        state: bytes,
        layout: tuple[StatePart, ...],
        outputs: tuple[str, ...],
        counters: tuple[str, ...],
        sources: tuple[Place, ...],
        writers: Mapping[str, Place],
        boot_id: str,
        versions: Mapping[str, str],
    ) -> None:
        self._set(
            thread,
            handler,
            program,
            key,
            audited,
            callable,
            state,
            layout,
            outputs,
            counters,
            sources,
            writers,
            boot_id,
            versions,
        )


class Ended(Value):
    """The last record of a run.

    Parameters
    ----------
    how
        ``clean``; ``handler``: it failed on the last input; ``output``: one refused what the
        handler published on the last input; ``other``: something failed between its calls.
    state
        The state then.
    counters
        By number.
    next_seqs
        What the outputs gave next, by number; 0 without a writer.
    """

    __slots__ = ("how", "state", "counters", "next_seqs")  # noqa: RUF023
    how: str
    state: bytes
    counters: tuple[int, ...]
    next_seqs: tuple[int, ...]

    def __init__(
        self, how: str, state: bytes, counters: tuple[int, ...], next_seqs: tuple[int, ...]
    ) -> None:
        self._set(how, state, counters, next_seqs)


_HOW: Final = ("clean", "handler", "output", "other")


def boot_id() -> str:
    """Return what tells this run of the machine from others."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123
        return file.read().strip()


# --- Writing ---


def encode_place(target: QueueReader | QueueWriter, *, tag: int = 0) -> bytes:
    """Return the record of a reader, with its tag, or of a writer that is handed over."""
    return json.dumps(_place_document(target, tag)).encode()


def _place_document(target: Any, tag: int = 0) -> dict[str, object]:
    import os

    document: dict[str, object] = {
        "path": os.path.abspath(os.fsdecode(target.path)),  # noqa: PTH100
        "queue_id": target.queue_id,
        "next_seq": target.next_seq,
    }
    if isinstance(target, _core.QueueWriter):
        document["epoch"] = target.epoch
    else:
        document["name"] = target.name or ""
        document["tag"] = tag
    return document


def encode_head(
    program: Program,
    *,
    thread: str,
    handler: str,
    state: bytes,
    readers: Iterable[tuple[QueueReader, int]],
    writers: Mapping[int, QueueWriter],
) -> bytes:
    """Return the head of a run.

    Parameters
    ----------
    program
        What runs.
    thread
        Name of the hot thread.
    handler
        ``module:Class``, or empty.
    state
        What it starts with.
    readers
        Sources, by number, each with its tag.
    writers
        By output.
    """
    dtype = program.dtype_of_state()
    layout = () if dtype is None else layout_of_dtype(dtype)
    document = {
        "format": FORMAT,
        "thread": thread,
        "handler": handler,
        "program": program.name,
        "key": program.key,
        "audited": program.audited,
        "callable": program.callable is not None,
        "state": base64.b64encode(state).decode("ascii"),
        "layout": [_part_document(part) for part in layout],
        "outputs": list(program.outputs),
        "counters": list(program.counters),
        "sources": [_place_document(reader, tag) for reader, tag in readers],
        "writers": {
            program.outputs[number]: _place_document(writer) for number, writer in writers.items()
        },
        "boot_id": boot_id(),
        "versions": versions(),
    }
    return json.dumps(document).encode()


def versions() -> dict[str, str]:
    """Return what this process would write a journal with."""
    return {
        "chronicle": _core.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def layout_of_dtype(dtype: np.dtype[Any]) -> tuple[StatePart, ...]:
    """Return the layout of a structured NumPy type; empty if it has no fields."""
    parts: list[StatePart] = []
    for name, (field, offset, *_) in (dtype.fields or {}).items():
        element, count = field.base, None
        for extent in field.shape:
            count = extent * (1 if count is None else count)
        if element.fields is not None:
            type_name = "record"
        elif element.kind == "S":
            type_name = "chars"
        else:
            kind = _KINDS_OF_NUMPY.get(element.kind, "")
            type_name = kind if kind == "bool" else f"{kind}{8 * element.itemsize}"
            if type_name not in NUMBERS or element.byteorder == ">":
                type_name = "bytes"
        inner = layout_of_dtype(element)
        parts.append(StatePart(name, type_name, offset, element.itemsize, count, inner))
    return tuple(sorted(parts, key=lambda part: part.offset))


def _part_document(part: StatePart) -> dict[str, object]:
    document: dict[str, object] = {
        "name": part.name,
        "type": part.type,
        "offset": part.offset,
        "size": part.size,
    }
    if part.count is not None:
        document["count"] = part.count
    if part.type == "record":
        document["parts"] = [_part_document(inner) for inner in part.parts]
    return document


# --- Reading ---


def decode_head(data: bytes) -> Head:
    """Read the head of a run.

    Raises
    ------
    DecodeError
        If it is none.
    FormatError
        If it is of another version.
    """
    found = _document(data, "head")
    if found.get("format") != FORMAT:
        raise FormatError(
            f"the journal is of another format: found={found.get('format')!r:.40} "
            f"expected={FORMAT}; read it with the version that wrote it",
            field="format",
            found=repr(found.get("format"))[:40],
            expected=str(FORMAT),
        )
    try:
        state = base64.b64decode(_part(found, "state", str), validate=True)
    except ValueError as error:
        raise _damaged("head", f"state is no base64: {error}") from None
    outputs, counters = _names(found, "outputs"), _names(found, "counters")
    writers = _part(found, "writers", dict)
    if not set(writers) <= set(outputs):
        raise _damaged("head", "it has writers for outputs that there are not")
    sources = [_place(source) for source in _list(found, "sources")]
    texts = _part(found, "versions", dict)
    return Head(
        thread=_text(found, "thread"),
        handler=_text(found, "handler"),
        program=_text(found, "program"),
        key=_text(found, "key"),
        audited=_part(found, "audited", bool),
        callable=_part(found, "callable", bool),
        state=state,
        layout=_layout(_list(found, "layout"), len(state), depth=0),
        outputs=outputs,
        counters=counters,
        sources=tuple(sources),
        writers={name: _place(place) for name, place in writers.items()},
        boot_id=_text(found, "boot_id"),
        versions={str(name): str(value)[:_TEXT_MAX] for name, value in texts.items()},
    )


def decode_hand_off(data: bytes) -> tuple[int, int, Place]:
    """Read what a source or an output stands for from now on.

    Returns
    -------
    (int, int, Place)
        Its number; what the output's writer before would have given next (0: there was none; of a
        source it means nothing); where it stands.

    Raises
    ------
    DecodeError
        If it is none.
    """
    if len(data) < _INPUT.size:
        raise _damaged("hand-off", f"length={len(data)}")
    _, _, number, before, _, _ = _INPUT.unpack_from(data)
    return number, before, _place(_document(data[_INPUT.size :], "hand-off"))


def decode_output(data: bytes) -> tuple[int, int, Place | None]:
    """Read what an output writes to from now on; as `decode_hand_off`.

    ``None`` is an output that has no writer any more.
    """
    if len(data) == _INPUT.size:
        _, _, number, before, _, _ = _INPUT.unpack(data)
        return number, before, None
    return decode_hand_off(data)


def decode_final(data: bytes) -> Ended:
    """Read how a run ended.

    Raises
    ------
    DecodeError
        If it is no such record.
    """
    if len(data) < _FINAL.size:
        raise _damaged("final", f"length={len(data)}")
    how, state_bytes, counters, outputs = _FINAL.unpack_from(data)
    expected = _FINAL.size + state_bytes + 8 * (counters + outputs)
    if how >= len(_HOW) or len(data) != expected:
        raise _damaged("final", f"ended={how} length={len(data)} expected={expected}")
    end = _FINAL.size + state_bytes
    numbers = struct.unpack_from(f"<{counters + outputs}Q", data, end)
    state = data[_FINAL.size : end]
    return Ended(_HOW[how], state, numbers[:counters], numbers[counters:])


def _damaged(what: str, why: str) -> DecodeError:
    return DecodeError(f"{what} record of a journal is damaged: {why}")


def _document(data: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _damaged(what, f"no JSON: {str(error)[:80]}") from None
    if not isinstance(found, dict):
        raise _damaged(what, f"found={type(found).__name__} expected=an object")
    return found


def _part(source: object, key: str, kind: type[Any]) -> Any:
    value = source.get(key) if isinstance(source, Mapping) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _damaged("a", f"{key!r} must be {kind.__name__}, found={value!r:.80}")
    return value


def _text(source: object, key: str) -> str:
    value: str = _part(source, key, str)
    if len(value) > _TEXT_MAX or "\0" in value:
        raise _damaged("a", f"{key!r} is no usable text: length={len(value)}")
    return value


def _number(source: object, key: str, limit: int) -> int:
    value: int = _part(source, key, int)
    if not 0 <= value <= limit:
        raise _damaged("a", f"{key!r} is out of range: found={value!r:.40} limit={limit}")
    return value


def _list(source: object, key: str) -> list[Any]:
    value: list[Any] = _part(source, key, list)
    if len(value) > _NAMES_MAX:
        raise _damaged("a", f"{key!r} is too long: found={len(value)} limit={_NAMES_MAX}")
    return value


def _names(source: object, key: str) -> tuple[str, ...]:
    names = _list(source, key)
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise _damaged("a", f"{key!r} are no names")
    return tuple(names)


def _place(source: object) -> Place:
    if not isinstance(source, Mapping):
        raise _damaged("a", f"a queue must be an object, found={source!r:.80}")
    is_writer = "epoch" in source
    return Place(
        _text(source, "path"),
        _text(source, "queue_id"),
        _number(source, "next_seq", _U64_MAX),
        "" if is_writer else _text(source, "name"),
        _number(source, "epoch", _U64_MAX) if is_writer else 0,
        # Journals of before sources had tags have none.
        _number(source, "tag", _U32_MAX) if "tag" in source else 0,
    )


def _layout(documents: list[Any], size: int, *, depth: int) -> tuple[StatePart, ...]:
    """Read a layout, of which each part must lie inside of `size` bytes."""
    parts: list[StatePart] = []
    end = 0
    for document in documents:
        name, type_name = _text(document, "name"), _text(document, "type")
        offset = _number(document, "offset", _U32_MAX)
        one = _number(document, "size", _U32_MAX)
        count = _number(document, "count", _U32_MAX) if "count" in document else None
        inner: tuple[StatePart, ...] = ()
        if type_name == "record":
            if depth >= 8:
                raise _damaged("head", "its layout is too deep")
            inner = _layout(_list(document, "parts"), one, depth=depth + 1)
        elif type_name in NUMBERS:
            if one != NUMBERS[type_name].size_bytes:
                raise _damaged("head", f"field {name!r:.80} has size={one}")
        elif type_name not in ("chars", "bytes"):
            raise _damaged("head", f"field {name!r:.80} has type={type_name!r:.80}")
        part = StatePart(name, type_name, offset, one, count, inner)
        if offset < end or offset + part.size_bytes > size or one == 0:
            raise _damaged("head", f"field {name!r:.80} does not fit into the state")
        end = offset + part.size_bytes
        parts.append(part)
    if len({part.name for part in parts}) != len(parts):
        raise _damaged("head", "two fields of its layout have the same name")
    return tuple(parts)


# --- State ---


def state_parts(
    layout: tuple[StatePart, ...], one: bytes, other: bytes, path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields that differ between two states of this layout: path and both values.

    Bytes between fields are told as well: ``byte 12``.
    """
    end = 0
    for part in layout:
        yield from _padding(one, other, end, part.offset, path)
        end = part.offset + part.size_bytes
        if one[part.offset : end] == other[part.offset : end]:
            continue
        for index in range(1 if part.count is None else part.count):
            start = part.offset + index * part.size
            a, b = one[start : start + part.size], other[start : start + part.size]
            if a == b:
                continue
            name = f"{path}{part.name}" + ("" if part.count is None else f"[{index}]")
            if part.type == "record":
                yield from state_parts(part.parts, a, b, f"{name}.")
            else:
                yield name, _value(part, a), _value(part, b)
    yield from _padding(one, other, end, max(len(one), len(other)), path)


def _padding(
    one: bytes, other: bytes, start: int, end: int, path: str
) -> Iterator[tuple[str, Any, Any]]:
    if one[start:end] == other[start:end]:
        return
    for at in range(start, end):
        a, b = one[at : at + 1], other[at : at + 1]
        if a != b:
            yield f"{path}byte {at}", a[0] if a else None, b[0] if b else None


def _value(part: StatePart, data: bytes) -> Any:
    if part.type == "chars":
        return data.rstrip(b"\0")
    if part.type == "bytes":
        return data
    return struct.unpack("<" + NUMBERS[part.type].code, data)[0]
