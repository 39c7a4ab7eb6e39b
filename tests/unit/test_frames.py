"""Messages as tables, against a loop over the messages; queues as notebooks show them."""

from __future__ import annotations

import datetime as dt
import hashlib
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import chronicle
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from chronicle.errors import BadArgument, DecodeError, Gap, SchemaMismatch, SequenceNotWritten
from chronicle.message import (
    Array,
    Chars,
    MessageBase,
    Scale,
    bool_,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    message,
    u8,
    u16,
    u32,
    u64,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.queue_support import SEGMENT_BYTES, Trade, fill, publisher, subscriber
from tests.unit.test_report import HOSTILE, Page


@message(31)
class Everything(MessageBase):
    """One of each kind of field."""

    a: i8
    b: i16
    c: i32
    d: i64
    e: u8
    f: u16
    g: u32
    h: u64
    x: f32
    y: f64
    is_on: bool_
    text: Annotated[bytes, Chars(5)]
    price: Annotated[i64, Scale(4)]
    small: Annotated[i8, Scale(6)]
    total: Annotated[u64, Scale(18)]
    levels: Annotated[tuple[int, ...], Array(i32, 3)]
    flags: Annotated[tuple[bool, ...], Array(bool_, 2)]
    prices: Annotated[tuple[int, ...], Array(i64, 2), Scale(2)]


@message(32)
class Other(MessageBase):
    number: u64


def whole(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


ASCII = st.binary(max_size=5).map(lambda data: bytes(b & 0x7F for b in data))
EVERYTHING = st.builds(
    Everything,
    a=whole(-(1 << 7), (1 << 7) - 1),
    b=whole(-(1 << 15), (1 << 15) - 1),
    c=whole(-(1 << 31), (1 << 31) - 1),
    d=whole(-(1 << 63), (1 << 63) - 1),
    e=whole(0, (1 << 8) - 1),
    f=whole(0, (1 << 16) - 1),
    g=whole(0, (1 << 32) - 1),
    h=whole(0, (1 << 64) - 1),
    x=st.floats(width=32, allow_nan=False),
    y=st.floats(allow_nan=False),
    is_on=st.booleans(),
    text=ASCII,
    price=whole(-(1 << 63), (1 << 63) - 1),
    small=whole(-(1 << 7), (1 << 7) - 1),
    total=whole(0, (1 << 64) - 1),
    levels=st.tuples(*[whole(-(1 << 31), (1 << 31) - 1)] * 3),
    flags=st.tuples(st.booleans(), st.booleans()),
    prices=st.tuples(*[whole(-(1 << 63), (1 << 63) - 1)] * 2),
)
MESSAGES = st.lists(
    st.tuples(EVERYTHING | st.builds(Other, number=whole(0, 9)), whole(0, 1 << 40)), max_size=20
)


def naive(path: Path, cls: type[MessageBase]) -> list[dict[str, Any]]:
    """Read message by message."""
    rows = []
    with chronicle.Queue.open_subscriber(path, None, start="earliest") as reader:
        for found in reader:
            if found.type_id == cls.type_id:
                fields = cls.view(found.payload).as_dict(scaled=True)
                fields = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
                fields = {
                    k: v.decode("ascii") if isinstance(v, bytes) else v for k, v in fields.items()
                }
                rows.append({"_seq": found.seq, "_timestamp": found.timestamp_ns, **fields})
    return rows


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Undo what tables make of times."""
    made = []
    for row in rows:
        row = dict(row)
        stamp = row["_timestamp"]
        if isinstance(stamp, dt.datetime):
            # pandas' own kind of datetime, which has the nanoseconds.
            row["_timestamp"] = pd.Timestamp(stamp).value
        made.append({k: list(v) if isinstance(v, np.ndarray) else v for k, v in row.items()})
    return made


@settings(max_examples=60, deadline=None)
@given(MESSAGES, st.data())
def test_tables_have_what_a_loop_over_the_messages_finds(
    messages: list[tuple[MessageBase, int]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        path = Path(name) / "queue"
        with publisher(path, schema=[Everything, Other]) as writer:
            for one, timestamp_ns in messages:
                writer.publish(one, timestamp_ns=timestamp_ns)
        end = len(messages) + 1
        start = data.draw(st.integers(1, end))
        stop = data.draw(st.integers(start, end) | st.none())
        limits: dict[str, Any] = {"start": start, "stop": stop}
        queue = chronicle.Queue(path)
        for cls in (Everything, Other):
            expected = [row for row in naive(path, cls) if start <= row["_seq"] < (stop or end)]
            table = queue.to_arrow(cls, **limits)
            assert plain(table.to_pylist()) == expected
            table.validate(full=True)
            frame = queue.to_polars(cls.__name__, **limits)
            stamps = frame["_timestamp"].dt.epoch("ns")
            assert frame.with_columns(stamps).to_dicts() == expected
            pandas = queue.to_pandas(cls.type_id, **limits)
            assert pandas["_timestamp"].dt.tz is not None
            assert plain(pandas.to_dict("records")) == expected
            array = queue.to_numpy(cls, **limits)
            assert [cls.view(row.tobytes()).as_dict() for row in array] == [
                cls.view(m.pack()).as_dict()
                for seq, (m, _) in enumerate(messages, start=1)
                if isinstance(m, cls) and start <= seq < (stop or end)
            ]


def test_the_types_of_columns(path: Path) -> None:
    with publisher(path, schema=[Everything]):
        pass
    queue = chronicle.Queue(path)
    schema = queue.to_arrow().schema
    assert schema.field("_seq").type == pa.uint64()
    assert schema.field("_timestamp").type == pa.timestamp("ns", "UTC")
    assert schema.field("price").type == pa.decimal128(19, 4)
    assert schema.field("small").type == pa.decimal128(6, 6)
    assert schema.field("total").type == pa.decimal128(20, 18)
    assert schema.field("levels").type == pa.list_(pa.int32(), 3)
    assert schema.field("prices").type == pa.list_(pa.decimal128(19, 2), 2)
    assert schema.field("text").type == pa.large_string()
    assert schema.field("is_on").type == pa.bool_()
    frame = queue.to_polars()
    assert frame.schema["price"] == pl.Decimal(19, 4)
    assert frame.schema["levels"] == pl.Array(pl.Int32, 3)
    assert frame.schema["_timestamp"] == pl.Datetime("ns", "UTC")
    names = [field.name for field in Everything.FIELDS]
    assert queue.to_arrow(headers=False).column_names == names
    assert list(queue.to_pandas(headers=False).columns) == names


def test_prices_as_floats_or_as_they_are(path: Path) -> None:
    @message(33)
    class Priced(MessageBase):
        price: Annotated[i64, Scale(2)]

    with publisher(path, schema=[Priced]) as writer:
        writer.publish(Priced(price=-1999))
    queue = chronicle.Queue(path)
    for make in (queue.to_arrow, queue.to_polars, queue.to_pandas):
        column = {how: list(make(scaled=how)["price"]) for how in ("decimal", "float", "raw")}
        values = {how: getattr(v[0], "as_py", lambda v=v: v[0])() for how, v in column.items()}
        assert values == {"decimal": Decimal("-19.99"), "float": -19.99, "raw": -1999}


def trades(path: Path, count: int, **options: Any) -> None:
    with publisher(path, schema=[Trade], **options) as writer:
        for number in range(1, count + 1):
            writer.publish(
                Trade(price=number, symbol=b"A%d" % (number % 9), qty=number * 2),
                timestamp_ns=number * 10,
            )


def mapped(values: Any) -> np.ndarray:
    """Return the array over the file itself, of one that is a view of it."""
    array = np.asarray(values)
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def test_numbers_are_views_of_the_file_within_one_segment(path: Path) -> None:
    trades(path, 100, segment_bytes=1 << 20)
    queue = chronicle.Queue(path)
    array = queue.to_numpy()
    assert type(mapped(array).base).__name__ == "Run"
    assert not array.flags.writeable
    assert array.strides[0] > array.itemsize
    frame = queue.to_pandas()
    for name in ("price", "qty"):
        column = frame[name].to_numpy()
        assert type(mapped(column).base).__name__ == "Run", name
        assert column.strides == array.strides
    # Where it is not: text, headers, Arrow, which knows no strides.
    assert type(mapped(frame["_seq"].to_numpy()).base).__name__ != "Run"
    for column in queue.to_arrow()["price"].chunks:
        assert np.asarray(column).strides == (8,)
    assert np.asarray(queue.to_polars()["price"]).strides == (8,)


def test_views_outlive_the_queue(path: Path) -> None:
    trades(path, 100, segment_bytes=1 << 20)
    frame = chronicle.Queue(path).to_pandas()
    array = chronicle.Queue(path).to_numpy()
    for file in sorted(path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    assert frame["price"].sum() == array["price"].sum() == 5050


def test_a_range_over_several_segments_is_copied_whole(path: Path) -> None:
    count = 3 * SEGMENT_BYTES // 64
    trades(path, count)
    assert len(chronicle.inspect(path)["segments"]) > 2
    queue = chronicle.Queue(path)
    array = queue.to_numpy()
    assert mapped(array).base is None
    assert not array.flags.writeable
    assert array["price"].tolist() == list(range(1, count + 1))
    assert queue.to_arrow()["qty"].to_pylist() == list(range(2, 2 * count + 1, 2))
    assert queue.to_arrow()["price"].num_chunks == 1
    assert queue.to_pandas()["qty"].tolist() == list(range(2, 2 * count + 1, 2))


def test_ranges_by_time(path: Path) -> None:
    trades(path, 100)
    queue = chronicle.Queue(path)

    def at(timestamp_us: int) -> dt.datetime:
        return dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=timestamp_us)

    def found(**limits: Any) -> list[int]:
        prices: list[int] = queue.to_arrow(**limits)["price"].to_pylist()
        return prices

    assert found(stop=at(0)) == []
    assert found(start=at(1)) == [100]
    assert found(start=at(0), stop=at(1)) == list(range(1, 100))
    assert found(start=at(2)) == []
    assert found(start=50, stop=at(1)) == list(range(50, 100))
    assert found(start=50, stop=20) == []
    assert found(start="latest") == []
    with pytest.raises(BadArgument, match="time with a time zone"):
        found(start=dt.datetime(2026, 1, 1))
    with pytest.raises(SequenceNotWritten):
        found(start=1_000)
    with pytest.raises(BadArgument, match="has no cursor"):
        found(start="resume")


@pytest.mark.parametrize("place", ["start", "stop"])
def test_a_range_of_any_kind_is_a_table_or_an_error_of_ours(path: Path, place: str) -> None:
    trades(path, 100)
    queue = chronicle.Queue(path)
    far = dt.datetime.max.replace(tzinfo=dt.UTC)
    early = dt.datetime.min.replace(tzinfo=dt.UTC)
    rows: dict[Any, int]
    rows = {"start": {0: 100, 101: 0, far: 0, early: 100}, "stop": {0: 0, 101: 100, far: 100}}[
        place
    ]
    for value, count in rows.items():
        limits: dict[str, Any] = {place: value}
        for make in (queue.to_numpy, queue.to_arrow, queue.to_polars, queue.to_pandas):
            assert len(make(**limits)) == count, value
    for wrong in (-1, 1 << 64, 1.5, True, "resume", "junk", object()):
        limits = {place: wrong}
        with pytest.raises(BadArgument, match="bad st"):
            queue.to_arrow(**limits)
    limits = {place: 102}
    with pytest.raises(SequenceNotWritten):
        queue.to_numpy(**limits)


def test_a_time_beyond_all_times_is_behind_all_messages(path: Path) -> None:
    with publisher(path) as writer, subscriber(path) as reader:
        fill(writer, 3)
        reader.seek(dt.datetime.max.replace(tzinfo=dt.UTC))
        assert reader.next_seq == 4


def test_another_class_of_the_type_is_no_way_to_read_it(path: Path) -> None:
    @message(Trade.type_id)
    class Changed(MessageBase):
        """As long as a trade, and something else."""

        price: f64
        symbol: Annotated[bytes, Chars(8)]
        qty: u64

    trades(path, 3)
    queue = chronicle.Queue(path)
    with pytest.raises(SchemaMismatch, match="leave the class out"):
        queue.to_numpy(Changed)
    no_messages: tuple[Any, ...] = (int, MessageBase)
    for wrong in no_messages:
        with pytest.raises(BadArgument, match=r"no message: class=.*@chronicle\.message"):
            queue.to_numpy(wrong)
    (path / "queue.json").unlink()
    assert len(chronicle.Queue(path).to_numpy(Changed)) == 3, "nothing says that it is wrong"


def test_types_that_take_turns_and_epochs_that_add_some(path: Path) -> None:
    with publisher(path, schema=[Trade]) as writer:
        writer.publish(Trade(price=1, symbol=b"A", qty=1))
    with publisher(path, schema=[Other]) as writer:
        for number in range(500):
            writer.publish(Other(number=number))
            writer.publish(Trade(price=number, symbol=b"B", qty=(1 << 64) - 1))
    queue = chronicle.Queue(path)
    assert queue.to_arrow("Other")["number"].to_pylist() == list(range(500))
    trades_found = queue.to_polars("Trade")
    assert trades_found["price"].to_list() == [1, *range(500)]
    assert trades_found["qty"].max() == (1 << 64) - 1
    assert queue.to_numpy("Trade", start=2, stop=6)["price"].tolist() == [0, 1]


def test_tables_are_good_when_the_queue_its_files_and_the_interpreter_go(path: Path) -> None:
    program = f"""
import atexit, gc, shutil, sys
import chronicle
queue = chronicle.Queue({str(path)!r})
tables = queue.to_numpy(), queue.to_arrow(), queue.to_polars(), queue.to_pandas()
del queue
gc.collect()
shutil.rmtree({str(path)!r})

def check():
    array, arrow, frame, pandas = tables
    found = [array["price"], arrow["price"].to_numpy(), frame["price"], pandas["price"]]
    print([int(column.sum()) for column in found])

check()
atexit.register(check)
sys.keep = tables
"""
    trades(path, 100)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == [str([5050] * 4)] * 2


def test_what_was_deleted_is_told(path: Path) -> None:
    count = 4 * SEGMENT_BYTES // 64
    trades(path, count)
    chronicle.apply_retention(path, bytes_max=SEGMENT_BYTES)
    queue = chronicle.Queue(path)
    left = queue.to_arrow()["price"].to_pylist()
    assert left == list(range(left[0], count + 1))
    assert left[0] > 1
    with pytest.raises(Gap):
        queue.to_arrow(start=1)


def test_the_messages_meant_must_be_clear(path: Path) -> None:
    with publisher(path, schema=[Trade, Other]) as writer:
        writer.append(99, b"raw")
        writer.append(Other.type_id, b"too long for an Other")
    queue = chronicle.Queue(path)
    for wrong in (None, "Quote"):
        with pytest.raises(BadArgument, match=r"which messages\? .*in_schema=Other, Trade"):
            queue.to_arrow(wrong)
    with pytest.raises(SchemaMismatch, match="has no type_id=99"):
        queue.to_arrow(99)
    with pytest.raises(SchemaMismatch, match="is not a Other"):
        queue.to_arrow("Other")
    assert queue.to_arrow(Trade).num_rows == 0
    wrong_options: list[dict[str, Any]] = [{"scaled": "x"}, {"text": "x"}]
    for options in wrong_options:
        for make in (queue.to_arrow, queue.to_pandas, queue.to_polars):
            with pytest.raises(BadArgument, match="expected=one of"):
                make(Trade, **options)


def test_what_a_table_cannot_hold_is_an_error_that_names_the_message(path: Path) -> None:
    with publisher(path, schema=[Trade]) as writer:
        writer.publish(Trade(price=1, symbol=b"ok", qty=1), timestamp_ns=1)
        writer.publish(Trade(price=1, symbol=b"\xff", qty=1), timestamp_ns=1 << 63)
    queue = chronicle.Queue(path)
    with pytest.raises(DecodeError, match=r"seq=2 timestamp_ns=9223372036854775808"):
        queue.to_polars()
    with pytest.raises(DecodeError, match=r"not ASCII: field='symbol' row=1 .*text='bytes'"):
        queue.to_arrow(headers=False)
    table = queue.to_arrow(headers=False, text="bytes")
    assert table["symbol"].to_pylist() == [b"ok", b"\xff"]
    assert queue.to_pandas(headers=False, text="bytes")["symbol"].tolist() == [b"ok", b"\xff"]


@pytest.mark.parametrize(
    ("missing", "method"),
    [("pyarrow", "to_arrow"), ("polars", "to_polars"), ("pandas", "to_pandas")],
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, method: str
) -> None:
    trades(path, 1)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(BadArgument, match=rf"needs {missing}.*chronicle-python\[frames\]"):
        getattr(chronicle.Queue(path), method)()
    assert len(chronicle.Queue(path).to_numpy()) == 1


# --- In notebooks ---


def state_of(path: Path) -> dict[str, tuple[str, int, int]]:
    """Return what is in a directory, and when it was last changed."""
    found = {}
    for file in sorted(path.rglob("*")):
        data = file.read_bytes() if file.is_file() else b""
        info = file.stat()
        found[str(file)] = (hashlib.sha256(data).hexdigest(), info.st_mtime_ns, info.st_mode)
    return found


def test_a_queue_shows_its_schema_rate_and_last_messages(path: Path) -> None:
    with publisher(path, schema=[Everything, Trade]) as writer:
        for number in range(1, 51):
            writer.publish(
                Trade(price=number, symbol=b"AAPL", qty=1), timestamp_ns=number * 100_000_000
            )
        before = state_of(path)
        queue = chronicle.Queue(path)
        html = queue._repr_html_()
        assert state_of(path) == before
        shown = "".join(Page(html).text)
        assert "50 (next: 51)" in shown
        assert "10 messages/s" in shown
        assert "levels i32[3]" in shown
        assert "price i64/10^4" in shown
        assert "1970-01-01 00:00:05.000000000" in shown
        assert [f"price={n}" in shown for n in (45, 46, 50)] == [False, True, True]
        assert html == writer._repr_html_()
        with chronicle.Queue.open_subscriber(path, None) as reader:
            assert reader._repr_html_() == html


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_queue_shows_is_escaped(folder: Path, text: str) -> None:
    name = text.replace("/", "∕").replace("\x00", "")
    path = folder / name
    with publisher(path) as writer:
        writer.append(1, text.encode() * 20)
        writer.append(2, b"")
    found = Page(chronicle.Queue(path)._repr_html_())
    assert {tag for tag, _ in found.tags} <= {
        *("div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td")
    }
    assert all(attributes.keys() <= {"class", "style"} for _, attributes in found.tags)
    styles = {attributes.get("style") for _, attributes in found.tags} - {None}
    # Ours alone; numbers stand to the right.
    assert styles <= {"text-align: left", "text-align: right"}
    assert "type 1" in "".join(found.text)


def test_what_cannot_be_read_is_shown_with_the_reason(path: Path) -> None:
    assert "no queue at this path" in chronicle.Queue(path)._repr_html_()
    with publisher(path, schema=[Trade]) as writer:
        fill(writer, 3)
    assert "type 1" in chronicle.Queue(path)._repr_html_()
    (path / "queue.json").write_text("<b>")
    assert "is not a queue schema" in chronicle.Queue(path)._repr_html_()
    (path / "control").write_bytes(b"\0" * 4096)
    shown = Page(chronicle.Queue(path)._repr_html_())
    assert "cannot be read" in "".join(shown.text)


def test_an_empty_queue_shows_that_it_is_empty(path: Path) -> None:
    publisher(path).close()
    html = chronicle.Queue(path)._repr_html_()
    assert "no messages" in html
    assert "no schema" in html


def test_what_retention_left_is_shown(path: Path) -> None:
    trades(path, 4 * SEGMENT_BYTES // 64)
    chronicle.apply_retention(path, bytes_max=SEGMENT_BYTES)
    assert f"price={4 * SEGMENT_BYTES // 64}" in chronicle.Queue(path)._repr_html_()


def test_ipython_shows_the_html(path: Path) -> None:
    trades(path, 1)
    program = f"""
import chronicle
from IPython.core.formatters import DisplayFormatter
data, _ = DisplayFormatter().format(chronicle.Queue({str(path)!r}))
assert data["text/plain"].startswith("Queue("), data
assert "price=1" in data["text/html"]
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_nothing_heavy_is_imported_for_what_is_not_asked() -> None:
    program = (
        "import sys, chronicle, chronicle.queue; chronicle.Queue('/nowhere')._repr_html_(); "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert {"numpy", "pandas", "polars", "pyarrow"}.isdisjoint(done.stdout.split())
