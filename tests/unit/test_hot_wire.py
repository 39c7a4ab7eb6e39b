"""Tables of wire messages: what cannot be one is refused where it is made."""

from __future__ import annotations

import pytest
from chronicle.hot.wire import Wire, WireTable
from chronicle.message import MessageBase, i64, message


@message(2)
class Typed(MessageBase):
    number: i64


def wire(code: int) -> Wire:
    return Wire(Typed, code, 9, is_big_endian=True, fields={"number": (1, "i8")})


@pytest.mark.parametrize(
    ("raw_type_id", "codes", "text"),
    [
        (3, [], r"codes=\[\]"),
        (3, [65, 66, 65], r"codes=\[65, 65, 66\]"),
        (3, [-1], r"codes=\[-1\]"),
        (3, [256], r"codes=\[256\]"),
        (0, [65], "raw_type_id is out of range: value=0"),
        (1 << 16, [65], "raw_type_id is out of range: value=65536"),
    ],
)
def test_a_table_that_cannot_be_compiled_is_refused(raw_type_id: int, codes: list[int], text: str):
    with pytest.raises(ValueError, match=text):
        WireTable(raw_type_id, map(wire, codes))


def test_every_type_byte_will_do():
    assert [found.code for found in WireTable(0xFFFF, map(wire, (255, 0))).wires] == [0, 255]
