"""The journal's records in Python: what is written is read, and what is read is not trusted."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import struct
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
from chronicle.errors import ChronicleError, DecodeError, FormatError
from chronicle.hot import Cells, Handler, Table
from chronicle.hot.journal import (
    JOURNAL_FINAL,
    JOURNAL_HEAD,
    Place,
    StatePart,
    boot_id,
    decode_final,
    decode_hand_off,
    decode_head,
    decode_output,
    encode_head,
    encode_place,
    layout_of_dtype,
    state_parts,
)
from chronicle.hot.on import KIND_COMMAND, KIND_DATA, KIND_DATAGRAM, KIND_EVENT
from chronicle.hot.program import NativeHandler, Program, import_handler
from chronicle.hot.replay import replay
from chronicle.hot.replay_report import INPUT_KINDS
from chronicle.hot.spec import state_dtype
from chronicle.message import Array, char8, f64, i64, u16

from tests.queue_support import publisher, subscriber
from tests.replay_support import Plain, Tick, contents, small_run

MUTATIONS = 400


class Wide(Handler):
    number: u16
    name: char8
    window: Annotated[Cells[float], Array(f64, 3)]
    book: Annotated[Any, Table(Tick, 2)]
    total: i64


def head_bytes(folder: Path) -> bytes:
    """Return a head as a hot thread would write it."""
    writer, source = publisher(folder / "out"), publisher(folder / "in")
    reader = subscriber(folder / "in", "me")
    program = Program(
        "wide",
        state=bytes(Wide.SPEC.state_bytes),
        outputs=("a", "b"),
        counters=("seen",),
        state_dtype=state_dtype(Wide.SPEC),
        key="k" * 64,
    )
    data = encode_head(
        program,
        thread="hot",
        handler="m:Wide",
        state=program.state,
        readers=[(reader, 7)],
        writers={1: writer},
    )
    for each in (reader, writer, source):
        each.close()
    return data


def test_a_kind_of_input_has_one_number_and_a_number_one_kind() -> None:
    named = [INPUT_KINDS[kind] for kind in (KIND_DATA, KIND_COMMAND, KIND_EVENT)]
    assert named == ["message", "command", "event"]
    # A journal holds no datagrams, so theirs is none of the numbers in it.
    assert KIND_DATAGRAM not in range(len(INPUT_KINDS))


def test_a_head_is_read_as_it_was_written(folder: Path) -> None:
    head = decode_head(head_bytes(folder))
    assert (head.thread, head.handler, head.program) == ("hot", "m:Wide", "wide")
    assert (head.key, head.audited, head.callable) == ("k" * 64, False, False)
    assert head.state == bytes(Wide.SPEC.state_bytes)
    assert head.layout == layout_of_dtype(state_dtype(Wide.SPEC))
    assert (head.outputs, head.counters) == (("a", "b"), ("seen",))
    assert head.boot_id == boot_id()
    (source,) = head.sources
    assert (source.path, source.name, source.next_seq) == (str(folder / "in"), "me", 1)
    assert source.tag == 7
    assert list(head.writers) == ["b"]
    assert (head.writers["b"].path, head.writers["b"].epoch) == (str(folder / "out"), 1)
    assert len(source.queue_id) == 32
    assert source.queue_id != head.writers["b"].queue_id


def test_a_hand_off_names_the_queue(folder: Path) -> None:
    with publisher(folder / "out") as writer:
        writer.append(1, b"x")
        data = struct.pack("<HHIQQQ", 1, 0, 7, 41, 0, 0) + encode_place(writer)
        expected = Place(str(folder / "out"), writer.queue_id, 2, "", writer.epoch)
    assert decode_hand_off(data) == (7, 41, expected)
    # An output that has no writer any more.
    assert decode_output(data) == (7, 41, expected)
    assert decode_output(data[:32]) == (7, 41, None)


def test_a_final_record_is_read() -> None:
    data = struct.pack("<IIII3s2QQ", 1, 3, 2, 1, b"abc", 5, 6, 7)
    ended = decode_final(data)
    assert (ended.how, ended.state, ended.counters, ended.next_seqs) == (
        "handler",
        b"abc",
        (5, 6),
        (7,),
    )


@pytest.mark.parametrize("cut", [0, 8, 15, 16, 20, -1])
def test_a_final_record_that_is_cut_short_is_refused(cut: int) -> None:
    data = struct.pack("<IIII3s2QQ", 1, 3, 2, 1, b"abc", 5, 6, 7)
    with pytest.raises(DecodeError, match="final record"):
        decode_final(data[:cut])


def test_a_head_of_another_format_is_refused_as_such(folder: Path) -> None:
    document = json.loads(head_bytes(folder))
    with pytest.raises(FormatError, match="found=2 expected=1"):
        decode_head(json.dumps(document | {"format": 2}).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"state": "no base64!"},
        {"state": "AA=="},
        {"outputs": ["a", "a"]},
        {"outputs": [1]},
        {"outputs": ["a"]},
        {"sources": [1]},
        {"sources": [{"path": "x"}]},
        {"sources": [{"path": "x\0", "queue_id": "", "next_seq": 1, "name": ""}]},
        {"sources": [{"path": "x", "queue_id": "", "next_seq": -1, "name": ""}]},
        {"sources": [{"path": "x", "queue_id": "", "next_seq": 1 << 64, "name": ""}]},
        {"sources": [{"path": "x", "queue_id": "", "next_seq": True, "name": ""}]},
        {"writers": {"c": {}}},
        {"layout": [{"name": "a", "type": "f64", "offset": 0, "size": 4}]},
        {"layout": [{"name": "a", "type": "f65", "offset": 0, "size": 8}]},
        {"layout": [{"name": "a", "type": "f64", "offset": 1 << 20, "size": 8}]},
        {"layout": [{"name": "a", "type": "u8", "offset": 0, "size": 1, "count": 1 << 31}]},
        {"layout": [{"name": "a", "type": "chars", "offset": 0, "size": 0, "count": 1 << 31}]},
        {"layout": 2 * [{"name": "a", "type": "f64", "offset": 0, "size": 8}]},
        {"audited": 1},
        {"thread": None},
        {"versions": []},
    ],
)
def test_a_head_that_cannot_be_true_is_refused(folder: Path, change: dict[str, Any]) -> None:
    document = json.loads(head_bytes(folder))
    with pytest.raises(DecodeError):
        decode_head(json.dumps(document | change).encode())


def test_what_is_no_object_at_all_is_refused() -> None:
    for data in (b"", b"[]", b"1", b"\xff", b"[" * 100_000, b'{"format":' + b"9" * 5_000 + b"}"):
        with pytest.raises((DecodeError, FormatError)):
            decode_head(data)
        with pytest.raises(DecodeError):
            decode_hand_off(bytes(32) + data)


def test_random_changes_of_a_head_give_a_typed_error_or_a_head(folder: Path) -> None:
    data = head_bytes(folder)
    rng = random.Random(3)
    for _ in range(3_000):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(changed))
            match rng.randrange(3):
                case 0:
                    changed[at] = rng.randrange(256)
                case 1:
                    del changed[at : at + rng.randint(1, 20)]
                case _:
                    changed[at:at] = rng.randbytes(rng.randint(1, 5))
        with contextlib.suppress(DecodeError, FormatError):
            decode_head(bytes(changed))


# --- State ---


def test_a_difference_in_state_is_named_by_field_index_and_value() -> None:
    one = Wide()
    other = Wide(number=3, name=b"abc", window=(0.0, 1.5, 0.0), total=-1)
    other.book[1].price = 77
    layout = layout_of_dtype(state_dtype(Wide.SPEC))
    found = list(state_parts(layout, one.state_bytes(), other.state_bytes()))
    assert found == [
        ("number", 0, 3),
        ("name", b"", b"abc"),
        ("window[1]", 0.0, 1.5),
        ("book[1].price", 0, 77),
        ("total", 0, -1),
    ]


def test_bytes_between_fields_and_without_a_layout_are_named_by_their_place() -> None:
    layout = (StatePart("a", "u8", 0, 1), StatePart("b", "u16", 2, 2))
    assert list(state_parts(layout, b"\0\1\0\0", b"\0\2\0\0")) == [("byte 1", 1, 2)]
    assert list(state_parts((), b"ab", b"aC")) == [("byte 1", ord("b"), ord("C"))]
    assert list(state_parts((), b"ab", b"abc")) == [("byte 2", None, ord("c"))]


def test_nan_is_the_same_as_the_same_nan() -> None:
    layout = (StatePart("a", "f64", 0, 8),)
    nan = struct.pack("<d", float("nan"))
    assert list(state_parts(layout, nan, nan)) == []
    assert [path for path, _, _ in state_parts(layout, nan, bytes(8))] == ["a"]


def test_layouts_of_numpy_types_that_messages_do_not_have_are_bytes() -> None:
    dtype = np.dtype([("a", ">i4"), ("b", "<c16"), ("c", "?"), ("d", "<u2", (2, 3))])
    kinds = [(p.name, p.type, p.size, p.count) for p in layout_of_dtype(dtype)]
    assert kinds == [
        ("a", "bytes", 4, None),
        ("b", "bytes", 16, None),
        ("c", "bool", 1, None),
        ("d", "u16", 2, 6),
    ]


# --- Handlers by name ---


def test_a_handler_is_imported_by_its_name() -> None:
    assert type(import_handler("tests.replay_support:Plain")) is Plain
    with pytest.raises(ChronicleError, match="expected=module:Class"):
        import_handler("tests.replay_support")
    for name in ("no.such.module:Plain", "tests.replay_support:NoSuch", ":", "a:b", "..:x"):
        with pytest.raises(ChronicleError, match="bad handler"):
            import_handler(name)


def test_the_name_of_a_handler_may_be_a_function_that_makes_it() -> None:
    assert isinstance(import_handler("tests.unit.test_hot_journal:make"), NativeHandler)


def make() -> NativeHandler:
    return NativeHandler(0)


# --- Journals as a whole ---


def test_hostile_journals_give_typed_errors_or_a_report(folder: Path) -> None:
    original = contents(small_run(folder))
    assert (original[0][1], original[-1][1]) == (JOURNAL_HEAD, JOURNAL_FINAL)
    rng = random.Random(5)
    verdicts: set[str] = set()
    for number in range(MUTATIONS):
        path = folder / f"hostile-{number}"
        with publisher(path) as writer:
            for type_id, data in mutated(rng, [(r[1], r[3]) for r in original]):
                writer.append(type_id, data)
        try:
            # Never another handler than this: a journal must not be able to name what is run.
            verdicts.add(replay(path, Plain()).verdict)
        except ChronicleError as error:
            verdicts.add(type(error).__name__)
        remove(path)
    assert {"identical", "different", "unproved", "DecodeError"} <= verdicts


def mutated(rng: random.Random, records: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    records = list(records)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(records))
        type_id, data = records[at]
        match rng.randrange(6):
            case 0:
                del records[at]
            case 1:
                records.insert(rng.randrange(len(records) + 1), (type_id, data))
            case 2:
                records[at] = (rng.choice([*range(65_101, 65_110), 1]), data)
            case 3 if data:
                changed = bytearray(data)
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
                records[at] = (type_id, bytes(changed))
            case 4:
                records[at] = (type_id, data[: rng.randrange(len(data) + 1)])
            case _:
                records[at] = (type_id, data + rng.randbytes(rng.randint(1, 40)))
        if not records:
            break
    return records


def remove(path: Path) -> None:
    import shutil

    shutil.rmtree(path)


def test_state_in_a_head_is_base64(folder: Path) -> None:
    small_run(folder)
    document = json.loads(contents(folder / "journal")[0][3])
    assert base64.b64decode(document["state"]) == Plain().state_bytes()
    assert document["handler"] == "tests.replay_support:Plain"
