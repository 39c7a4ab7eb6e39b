"""The schema that is stored with a queue: merging, mismatches, damage."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Annotated, Any

import chronicle
import pytest
from chronicle.message import MessageBase, Scale, i64, message_from_schema, u8, u16

from tests.queue_support import Quote, Trade, publisher, subscriber, trades


def stored(path: Path) -> Any:
    return json.loads((path / "queue.json").read_text())


def test_the_schema_is_stored_with_the_queue_for_people_to_read(path: Path):
    with publisher(path, schema=[Quote, Trade], checksum=True):
        document = stored(path)
        facts = chronicle.inspect(path)
    assert document["version"] == 1
    assert document["queue_id"] == facts["queue_id"]
    assert document["options"] == {
        "segment_bytes": 1 << 16,
        "segments_max": 8192,
        "checksum": True,
    }
    assert document["schema"] == [Trade.schema, Quote.schema]


def test_a_queue_without_messages_classes_has_an_empty_schema(path: Path):
    with publisher(path) as writer, subscriber(path) as reader:
        assert writer.schema == {}
        assert reader.schema == {}
    assert stored(path)["schema"] == []


def test_a_reader_decodes_by_the_stored_schema_alone(path: Path):
    @chronicle.message(77)
    class Priced(MessageBase):
        price: Annotated[i64, Scale(4)]

    with publisher(path, schema=[Priced]) as writer, subscriber(path) as reader:
        writer.publish(Priced(price=12_345))
        found = reader.decode(next(iter(reader)))
        assert type(found) is not Priced
        assert type(found).__name__ == "Priced"
        assert found.as_dict() == {"price": 12_345}
        assert str(found.as_dict(scaled=True)["price"]) == "1.2345"
        assert reader.schema[77].schema == Priced.schema


def test_a_queue_may_gain_classes_and_keeps_the_old(path: Path):
    publisher(path, schema=[Trade]).close()
    with publisher(path, schema=[Quote]) as writer:
        assert sorted(writer.schema) == [Trade.type_id, Quote.type_id]
    with publisher(path) as writer:
        assert sorted(writer.schema) == [Trade.type_id, Quote.type_id]
        writer.append_many(trades(2))  # By the dtype of the stored class.


def test_a_live_reader_learns_a_class_that_the_queue_gains(path: Path):
    publisher(path, schema=[Trade]).close()
    with subscriber(path) as reader:
        assert list(reader.schema) == [Trade.type_id]
        with publisher(path, schema=[Quote]) as writer:
            writer.publish(Quote(bid=1.0, ask=2.0, symbol=b"A", size=1))
        assert reader.decode(next(iter(reader))).as_dict()["ask"] == 2.0


def test_the_same_class_again_changes_nothing(path: Path):
    publisher(path, schema=[Trade]).close()
    before = (path / "queue.json").stat().st_ino
    publisher(path, schema=[Trade]).close()
    assert (path / "queue.json").stat().st_ino == before


def test_a_changed_class_is_refused_and_the_queue_is_free_and_unchanged(path: Path):
    publisher(path, schema=[Trade]).close()
    before = (path / "queue.json").read_bytes()

    @chronicle.message(Trade.type_id)
    class Changed(MessageBase):
        price: u16

    with pytest.raises(chronicle.SchemaMismatch, match="new type id"):
        publisher(path, schema=[Changed])
    assert (path / "queue.json").read_bytes() == before
    publisher(path, schema=[Trade]).close()


def test_two_classes_with_one_type_id_are_refused(path: Path):
    @chronicle.message(Trade.type_id)
    class Other(MessageBase):
        a: u8

    with pytest.raises(chronicle.SchemaMismatch):
        publisher(path, schema=[Trade, Other])


def test_a_type_that_the_schema_lacks_is_a_mismatch_with_advice(path: Path):
    with publisher(path, schema=[Trade]) as writer, subscriber(path) as reader:
        writer.append(99, b"x")
        message = next(iter(reader))
        with pytest.raises(chronicle.SchemaMismatch, match="type_id=99"):
            reader.decode(message)


def test_a_message_shorter_than_its_class_is_a_mismatch(path: Path):
    with publisher(path, schema=[Trade]) as writer, subscriber(path) as reader:
        writer.append(Trade.type_id, b"short")
        with pytest.raises(chronicle.SchemaMismatch, match="too few bytes"):
            reader.decode(next(iter(reader)))


GARBAGE: dict[str, bytes] = {
    "empty": b"",
    "not json": b"{",
    "not text": b"\xff\xfe\x00",
    "nul": bytes(100),
    "a number": b"5",
    "a list": b"[]",
    "a string": b'"schema"',
    "no version": b'{"schema": []}',
    "no schema": b'{"version": 1}',
    "schema is no list": b'{"version": 1, "schema": {}}',
    "deep": b"[" * 100_000,
    "long number": b'{"version": 1, "schema": [' + b"9" * 10_000 + b"]}",
    "another version": b'{"version": 2, "schema": []}',
    "version is text": b'{"version": "1", "schema": []}',
    "version is null": b'{"version": null, "schema": []}',
    "entry is null": b'{"version": 1, "schema": [null]}',
    "entry is empty": b'{"version": 1, "schema": [{}]}',
    "twice": json.dumps({"version": 1, "schema": [Trade.schema, Trade.schema]}).encode(),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_a_schema_file_of_garbage_is_a_typed_error(path: Path, kind: str):
    with publisher(path) as writer:
        writer.append(1, b"still readable")
    (path / "queue.json").write_bytes(GARBAGE[kind])
    with pytest.raises((chronicle.FormatError, chronicle.DecodeError)):
        publisher(path)
    with subscriber(path) as reader:
        message = next(iter(reader))  # Bytes need no schema.
        assert bytes(message.payload) == b"still readable"
        with pytest.raises((chronicle.FormatError, chronicle.DecodeError)):
            reader.decode(message)
        with pytest.raises((chronicle.FormatError, chronicle.DecodeError)):
            assert reader.schema


def mutations() -> list[tuple[str, Any]]:
    """Return schemas in which one value is something else."""
    others: list[Any] = [None, True, -1, 0, 1 << 70, 1.5, "", "price", [], {}, [1], "x" * 1_000]
    found = []
    for key in ("name", "type_id", "size", "fields"):
        found += [(f"{key}={other!r:.20}", {**Trade.schema, key: other}) for other in others]
        found.append((f"no {key}", {k: v for k, v in Trade.schema.items() if k != key}))
    for key in ("name", "type", "offset", "count", "scale"):
        for other in others:
            fields = [dict(field) for field in Trade.schema["fields"]]
            fields[1][key] = other
            found.append((f"field {key}={other!r:.20}", {**Trade.schema, "fields": fields}))
    return found


@pytest.mark.parametrize(("kind", "schema"), mutations())
def test_a_damaged_schema_is_refused_or_is_still_a_schema(kind: str, schema: Any):
    try:
        cls = message_from_schema(json.loads(json.dumps(schema)))
    except (chronicle.DecodeError, chronicle.SchemaMismatch):
        return
    assert message_from_schema(cls.schema).schema == cls.schema
    assert cls.view(bytes(cls.size_bytes)).pack() == bytes(cls.size_bytes)


@pytest.mark.parametrize("name", ["__class__", "pack", "x; import os", "a b", "", "def", "_hidden"])
def test_a_stored_field_name_cannot_become_code(name: str):
    schema = json.loads(json.dumps(Trade.schema))
    schema["fields"][0]["name"] = name
    with pytest.raises(chronicle.DecodeError):
        message_from_schema(schema)


def test_without_its_schema_file_a_queue_is_read_as_bytes(path: Path):
    with publisher(path, schema=[Trade]) as writer:
        writer.publish(Trade(price=1, symbol=b"A", qty=1))
    (path / "queue.json").unlink()
    with subscriber(path) as reader:
        assert reader.schema == {}
        assert len(reader.read_batch(Trade)) == 1


def test_a_publisher_restores_a_schema_file_that_is_missing(path: Path):
    publisher(path, schema=[Trade]).close()
    (path / "queue.json").unlink()
    publisher(path, schema=[Quote]).close()
    assert [entry["type_id"] for entry in stored(path)["schema"]] == [Quote.type_id]


def test_what_a_killed_writer_left_of_a_schema_is_written_over(path: Path):
    publisher(path).close()
    (path / "queue.json.tmp").write_bytes(b"half a sche")
    publisher(path, schema=[Trade]).close()
    assert sorted(p.name for p in path.iterdir() if p.name.startswith("queue")) == ["queue.json"]
    assert stored(path)["schema"] == [Trade.schema]


@pytest.mark.parametrize(("group_readable", "mode"), [(False, 0o600), (True, 0o640)])
def test_a_schema_that_is_gained_later_has_the_modes_of_the_queue(
    path: Path, group_readable: bool, mode: int
):
    old = os.umask(0)
    try:
        publisher(path, group_readable=group_readable).close()
        # The option counts at creation only.
        publisher(path, schema=[Trade]).close()
    finally:
        os.umask(old)
    assert stat.S_IMODE((path / "queue.json").stat().st_mode) == mode


def test_a_pipe_in_place_of_the_schema_does_not_hang(path: Path):
    publisher(path, schema=[Trade]).close()
    (path / "queue.json").unlink()
    os.mkfifo(path / "queue.json")
    with pytest.raises((chronicle.ChronicleError, OSError)):
        publisher(path)
