"""Messages: layout, packing, views, schemas."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
from decimal import Decimal
from typing import Annotated, Any

import numpy as np
import pytest
from chronicle.errors import ChronicleError, DecodeError, SchemaMismatch
from chronicle.message import (
    Array,
    Chars,
    MessageBase,
    Scale,
    array,
    bool_,
    char8,
    chars,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    message,
    message_from_schema,
    u8,
    u16,
    u32,
    u64,
)
from hypothesis import given, settings
from hypothesis import strategies as st


@message(7)
class Everything(MessageBase):
    """One field of each kind, in an order that needs padding."""

    flag: bool_
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
    name: char8
    odd: Annotated[bytes, Chars(3)]
    levels: Annotated[tuple[float, ...], Array(f64, 3)]
    price: Annotated[i64, Scale(4)] = 0


VALUES: dict[str, Any] = {
    "flag": True,
    "a": -1,
    "b": -2,
    "c": -3,
    "d": -4,
    "e": 1,
    "f": 2,
    "g": 3,
    "h": 2**64 - 1,
    "x": 0.5,
    "y": 0.1,
    "name": b"AAPL",
    "odd": b"xyz",
    "levels": (1.0, 2.0, 3.0),
    "price": -125_000,
}


def test_fields_read_back_as_they_were_given() -> None:
    made = Everything(**VALUES)
    assert made.as_dict() == VALUES
    assert Everything.view(made.pack()).as_dict() == VALUES
    assert bytes(made) == made.pack()
    assert len(made.pack()) == Everything.size_bytes


def test_layout_is_that_of_numpy_with_align() -> None:
    formats = [(f.name, f.numpy) for f in Everything.FIELDS if f.name != "levels"]
    formats.insert(-1, ("levels", "<f8", (3,)))  # type: ignore[arg-type]
    expected = np.dtype(formats, align=True)
    assert Everything.dtype == expected
    assert Everything.dtype.itemsize == Everything.size_bytes == expected.itemsize
    assert expected.fields is not None
    assert [f.offset for f in Everything.FIELDS] == [
        expected.fields[f.name][1] for f in Everything.FIELDS
    ]


def test_numpy_and_the_view_read_the_same_values() -> None:
    records = np.zeros(2, Everything.dtype)
    for name, value in VALUES.items():
        records[1][name] = value
    assert Everything.view(records, Everything.size_bytes) == Everything(**VALUES)
    back = np.frombuffer(Everything(**VALUES).pack(), Everything.dtype)
    assert back.tobytes() == records[1:].tobytes()


def test_padding_is_zero() -> None:
    @message(1)
    class Gappy(MessageBase):
        small: u8
        wide: u64

    assert Gappy(small=255, wide=0).pack() == b"\xff" + bytes(15)


def test_a_view_sees_later_changes_of_its_buffer_and_copies_nothing() -> None:
    @message(1)
    class One(MessageBase):
        value: u32

    buffer = bytearray(8)
    view = One.view(buffer, 4)
    struct.pack_into("<I", buffer, 4, 99)
    assert view.value == 99
    assert One.view(memoryview(buffer)[4:]).pack() == b"\x63\0\0\0"


def test_a_message_cannot_be_changed() -> None:
    made = Everything(**VALUES)
    with pytest.raises(AttributeError):
        made.a = 5  # type: ignore[misc]
    with pytest.raises(AttributeError):
        made.other = 5  # type: ignore[attr-defined]


def test_a_view_of_too_few_bytes_is_a_schema_mismatch() -> None:
    for size in (0, 1, Everything.size_bytes - 1):
        with pytest.raises(SchemaMismatch, match=f"found={size}"):
            Everything.view(bytes(size))
    with pytest.raises(SchemaMismatch):
        Everything.view(bytes(Everything.size_bytes), 1)
    with pytest.raises(ValueError, match="negative"):
        Everything.view(bytes(Everything.size_bytes), -1)


def test_a_view_of_more_bytes_reads_the_known_fields() -> None:
    longer = Everything(**VALUES).pack() + b"appended later"
    assert Everything.view(longer) == Everything(**VALUES)
    assert Everything.view(longer).pack() == Everything(**VALUES).pack()


@pytest.mark.parametrize(
    ("name", "value", "error", "text"),
    [
        ("a", 128, ValueError, "value=128 range=-128..127"),
        ("h", -1, ValueError, "value=-1 range=0..18446744073709551615"),
        ("d", 1 << 63, ValueError, "range=-9223372036854775808..9223372036854775807"),
        ("g", 1.0, TypeError, "takes u32: value=1.0"),
        ("g", "1", TypeError, "takes u32"),
        ("x", 1e300, ValueError, "type=f32"),
        ("y", "no", TypeError, "takes f64"),
        ("flag", b"N", TypeError, "True or False"),
        ("flag", 2, TypeError, "True or False"),
        ("name", b"123456789", ValueError, "limit=8 bytes"),
        ("name", "é", ValueError, "ASCII"),
        ("name", 5, TypeError, "bytes or str"),
        ("levels", (1, 2), ValueError, "found=2 expected=3"),
        ("levels", (1, 2, "x"), TypeError, "takes f64"),
    ],
)
def test_a_refused_value_names_its_field_and_range(
    name: str, value: object, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=f"field '{name}' of message 'Everything'") as caught:
        Everything(**(VALUES | {name: value}))
    assert text in str(caught.value)


def test_missing_and_unknown_fields_are_type_errors() -> None:
    with pytest.raises(TypeError, match="name"):
        Everything(**{k: v for k, v in VALUES.items() if k != "name"})
    with pytest.raises(TypeError, match="more"):
        Everything(**(VALUES | {"more": 1}))


def test_text_is_padded_with_nul_and_keeps_spaces() -> None:
    @message(1)
    class Text(MessageBase):
        name: Annotated[bytes, Chars(6)]

    given: list[Any] = ["AB ", b"AB ", bytearray(b"AB "), memoryview(b"AB ")]
    for text in given:
        assert Text(name=text).name == b"AB "
        assert Text(name=text).pack() == b"AB \0\0\0"


def test_short_forms_equal_their_long_forms() -> None:
    text: Any = chars
    numbers: Any = array
    assert text[8] == char8
    assert numbers[f64, 3] == Annotated[tuple[Any, ...], Array(f64, 3)]
    with pytest.raises(TypeError, match="a number type and a count"):
        numbers[f64]
    with pytest.raises(TypeError, match="Array holds numbers"):
        Array(char8, 3)


def test_equality_is_by_type_and_fields() -> None:
    @message(7)
    class Other(MessageBase):
        a: i8

    made = Everything(**VALUES)
    assert made == Everything(**VALUES)
    assert hash(made) == hash(Everything(**VALUES))
    assert made != Everything(**(VALUES | {"a": 3}))
    assert made != Other(a=-1)
    assert made != 5


def test_messages_travel_through_pickle() -> None:
    made = Everything(**VALUES)
    assert pickle.loads(pickle.dumps(made)) == made


def test_scaled_integers_are_shown_as_decimals() -> None:
    shown = Everything(**VALUES).as_dict(scaled=True)
    assert shown["price"] == Decimal("-12.5000")
    assert shown["d"] == -4


def test_messages_match_by_position_and_keep_their_methods() -> None:
    @message(1)
    class Level:
        price: i64
        size: u32 = 100

        @property
        def worth(self) -> int:
            return self.price * self.size

        def __repr__(self) -> str:
            return "shown: " + super().__repr__()

    level = Level(price=3)
    match level:
        case Level(price, size):  # type: ignore[misc]
            assert (price, size) == (3, 100)
    assert level.worth == 300
    assert repr(level) == "shown: Level(price=3, size=100)"


def test_a_message_without_fields_is_empty() -> None:
    @message(1)
    class Tick(MessageBase):
        pass

    assert Tick().pack() == b""
    assert Tick.view(b"") == Tick()
    assert Tick.size_bytes == 0
    assert message_from_schema(Tick.schema).size_bytes == 0


@pytest.mark.parametrize("type_id", [0, -1, 65_536, 1.5, True, "1"])
def test_type_ids_out_of_range_are_refused(type_id: Any) -> None:
    with pytest.raises(ValueError, match=r"range=1\.\.65535"):
        message(type_id)


def test_fields_without_a_layout_are_refused() -> None:
    with pytest.raises(TypeError, match="no fixed layout"):

        @message(1)
        class Loose:
            value: int

    with pytest.raises(TypeError, match="is taken"):

        @message(1)
        class Clash:
            schema: i64

    with pytest.raises(TypeError, match="not a plain name"):

        @message(1)
        class Hidden:
            _value: i64

    with pytest.raises(TypeError, match="holds no integer"):

        @message(1)
        class Scaled:
            value: Annotated[f64, Scale(2)]


def test_a_schema_survives_json_and_rebuilds_the_class() -> None:
    again = message_from_schema(json.loads(json.dumps(Everything.schema)))
    assert again.schema == Everything.schema
    assert again.FIELDS == Everything.FIELDS
    assert again.dtype == Everything.dtype
    assert again.type_id == 7
    assert again.view(Everything(**VALUES).pack()).as_dict() == VALUES


@pytest.mark.parametrize(
    "change",
    [
        {"name": 5},
        {"name": "no name"},
        {"type_id": 0},
        {"type_id": True},
        {"fields": {}},
        {"fields": [5]},
        {"fields": [{"name": "a", "type": "i65", "offset": 0}]},
        {"fields": [{"name": "a", "type": "i64"}]},
        {"fields": [{"name": "a", "type": "chars", "offset": 0}]},
        {"fields": [{"name": "a", "type": "u8", "count": 1 << 60, "offset": 0}]},
        {"fields": [{"name": "a", "type": "u8", "count": 0, "offset": 0}]},
        {"fields": [{"name": "a", "type": "f64", "scale": 3, "offset": 0}]},
        {"fields": [{"name": "a", "type": "i64", "scale": 99, "offset": 0}]},
        {"fields": [{"name": "a;b", "type": "i64", "offset": 0}]},
        {"fields": [{"name": "class", "type": "i64", "offset": 0}]},
        {"fields": [{"name": "a", "type": "i64", "offset": 0}] * 2},
        {"fields": [{"name": "a", "type": "i64", "offset": 0}] * 5_000},
    ],
)
def test_a_damaged_schema_is_a_decode_error(change: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        message_from_schema(Everything.schema | change)


def test_a_schema_with_other_offsets_is_a_mismatch() -> None:
    with pytest.raises(SchemaMismatch, match="expected"):
        message_from_schema(Everything.schema | {"size": 8})
    moved = json.loads(json.dumps(Everything.schema))
    moved["fields"][1]["offset"] = 2
    with pytest.raises(SchemaMismatch, match="offsets"):
        message_from_schema(moved)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)


@given(st.data())
@settings(deadline=None)
def test_no_schema_from_a_file_raises_anything_untyped(data: st.DataObject) -> None:
    schema = json.loads(json.dumps(Everything.schema))
    target: Any = data.draw(st.sampled_from([schema, *schema["fields"]]))
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(json_values)
    try:
        rebuilt = message_from_schema(schema)
    except ChronicleError:
        return
    assert message_from_schema(rebuilt.schema).schema == rebuilt.schema


@given(json_values)
@settings(deadline=None)
def test_nothing_that_json_can_say_breaks_the_schema_reader(value: Any) -> None:
    with pytest.raises(DecodeError):
        message_from_schema(value)


def test_importing_messages_does_not_import_numpy() -> None:
    code = "import chronicle.message, sys; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
