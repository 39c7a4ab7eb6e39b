"""`Output` and `Outputs`: where a handler publishes, as the objects that they are uncompiled.

A table of outputs, ``reports: Annotated[Outputs, Slots(256)]``, is a row of outputs to everything
but the handler: its slots are outputs of their own with the names ``reports[0]`` to
``reports[255]``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import index as as_index
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeAlias

from chronicle.errors import BadArgument
from chronicle.hot.buffers import Bytes
from chronicle.hot.state import canonical_bytes
from chronicle.message import Field, MessageBase
from chronicle.values import Value

if TYPE_CHECKING:
    from chronicle.queue import QueueWriter

__all__ = [
    "Output",
    "OutputNames",
    "Outputs",
    "RawMessage",
    "Slots",
    "grouped",
    "is_slot",
    "slot_name",
]

#: What `HotThread` takes for one name: a writer, or those of a table by slot.
Given: TypeAlias = "QueueWriter | Mapping[int, QueueWriter] | Sequence[QueueWriter | None]"

SLOTS_MAX: Final = 4096
BAD_SLOT: Final = "index out of range: {label} index={value} count={count}"
BAD_TYPE_ID: Final = "type_id is out of range: value={value} range=1..65535"

_SLOT: Final = re.compile(r"(.+)\[(\d+)\]")


def slot_name(table: str, slot: int) -> str:
    """Return the name of one output of a table.

    >>> slot_name("reports", 3)
    'reports[3]'
    """
    return f"{table}[{slot}]"


def is_slot(name: str) -> bool:
    """Tell whether this is the name of one output of a table."""
    return _SLOT.fullmatch(name) is not None


def grouped(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of outputs with each table as one, and how many slots it has.

    >>> grouped(["signals", "reports[0]", "reports[1]"])
    ('signals', 'reports[2]')
    """
    counts: dict[str, int] = {}
    for name in names:
        found = _SLOT.fullmatch(name)
        key = name if found is None else found[1] + "["
        counts[key] = counts.get(key, 0) + 1
    return tuple(f"{key}{count}]" if key.endswith("[") else key for key, count in counts.items())


class Slots(Value):
    """How many outputs a table has: ``reports: Annotated[Outputs, Slots(256)]``.

    Examples
    --------
    >>> from chronicle.hot import Slots
    >>> Slots(256)
    Slots(slots_max=256)
    """

    __slots__ = ("slots_max",)
    slots_max: int

    def __init__(self, slots_max: int) -> None:
        if not isinstance(slots_max, int) or isinstance(slots_max, bool):
            raise TypeError(f"the slots of a table of outputs are a number, not {slots_max!r}")
        if not 1 <= slots_max <= SLOTS_MAX:
            raise ValueError(f"slots out of range: value={slots_max} range=1..{SLOTS_MAX}")
        self._set(slots_max)


class RawMessage(MessageBase):
    """A message without a layout, for unit tests: what ``publish_bytes`` published.

    Examples
    --------
    >>> RawMessage(9, b"abc")
    RawMessage(type_id=9, payload=b'abc')
    """

    __slots__ = ("payload", "type_id")

    type_id: int  # type: ignore[misc]  # Of a class in all other messages.
    payload: bytes
    FIELDS: ClassVar[tuple[Field, ...]] = ()

    def __init__(self, type_id: int, payload: bytes) -> None:
        self.type_id = type_id
        self.payload = payload

    def pack(self) -> bytes:
        """Return the bytes."""
        return self.payload

    __bytes__ = pack

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RawMessage):
            return NotImplemented
        return (self.type_id, self.payload) == (other.type_id, other.payload)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RawMessage(type_id={self.type_id}, payload={self.payload!r})"


class _Writer(Protocol):
    def append(self, type_id: int, payload: bytes, *, timestamp_ns: int | None = None) -> int: ...


class _Clock(Protocol):
    _chronicle_clock: int | None


class Output:
    """Where a handler publishes. Declared as ``signals: Output``.

    A hot thread attaches a `QueueWriter`. In a unit test messages are collected in `published`,
    unless `attach` gave a writer.

    Examples
    --------
    >>> import chronicle
    >>> from chronicle.hot import Handler, Output
    >>> from chronicle.message import MessageBase, f64, u32
    >>> @chronicle.message(1)
    ... class Trade(MessageBase):
    ...     price: f64
    >>> class Echo(Handler):
    ...     trades: Output
    ...     @chronicle.on(Trade)
    ...     def trade(self, trade: Trade) -> None:
    ...         self.trades.publish(Trade(price=trade.price))
    >>> handler = Echo()
    >>> handler.trade(Trade(price=1.0))
    >>> handler.trades.published
    [Trade(price=1.0)]
    """

    __slots__ = ("_handler", "_writer", "name", "published")

    name: str
    """The attribute's name."""
    published: list[MessageBase]
    """Messages so far, if no writer is attached; of ``publish_bytes`` a `RawMessage`."""

    def __init__(self, name: str, handler: _Clock | None = None) -> None:
        self.name = name
        self.published = []
        self._handler = handler
        self._writer: _Writer | None = None

    def attach(self, writer: _Writer | None) -> None:
        """Append to this writer from now on; ``None`` collects again."""
        self._writer = writer

    def publish(self, message: MessageBase) -> int:
        """Publish a message; return its sequence number.

        Compiled, the number is 0 while the output has no writer; collected messages are counted
        from 1.
        """
        if not isinstance(message, MessageBase):
            raise TypeError(f"output {self.name!r} takes messages: value={message!r}")
        data = canonical_bytes(message)
        # A row or a view would change after the fact.
        cls = type(message)
        plain: Any = cls if "FIELDS" in cls.__dict__ else cls.__bases__[0]
        return self._append(message.type_id, data, lambda: plain.view(data))

    def publish_bytes(self, type_id: int, data: Bytes) -> int:
        """Publish bytes as they are, as a message of this type; return its sequence number.

        Raises
        ------
        ValueError
            If `type_id` is not 1 to 65,535.
        """
        if not isinstance(data, Bytes):
            raise TypeError(f"output {self.name!r} publishes Bytes: value={data!r}")
        number = as_index(type_id)
        if not 1 <= number <= 0xFFFF:
            raise ValueError(BAD_TYPE_ID.format(value=number))
        payload = bytes(data)
        return self._append(number, payload, lambda: RawMessage(number, payload))

    def _append(self, type_id: int, data: bytes, show: Callable[[], MessageBase]) -> int:
        if self._writer is not None:
            clock = self._handler._chronicle_clock if self._handler is not None else None
            return self._writer.append(type_id, data, timestamp_ns=clock)
        self.published.append(show())
        return len(self.published)

    def __repr__(self) -> str:
        return f"<Output {self.name!r}: {len(self.published)} published>"


class Outputs:
    """A table of outputs. Declared as ``reports: Annotated[Outputs, Slots(256)]``.

    ``self.reports[slot].publish(...)``; slots count from 0, and a slot outside is an `IndexError`.

    Examples
    --------
    >>> import chronicle
    >>> from typing import Annotated
    >>> from chronicle.hot import Handler, Outputs, Slots
    >>> from chronicle.message import MessageBase, u32
    >>> @chronicle.message(1)
    ... class Order(MessageBase):
    ...     gateway: u32
    >>> class Router(Handler):
    ...     gateways: Annotated[Outputs, Slots(4)]
    ...     @chronicle.on(Order)
    ...     def order(self, order: Order) -> None:
    ...         self.gateways[order.gateway].publish(Order(gateway=order.gateway))
    >>> handler = Router()
    >>> handler.order(Order(gateway=2))
    >>> handler.gateways[2].published
    [Order(gateway=2)]
    """

    __slots__ = ("_label", "_outputs", "name")

    name: str
    """The attribute's name."""

    def __init__(self, name: str, count: int, owner: str, handler: _Clock | None = None) -> None:
        self.name = name
        self._label = outputs_label(name, owner)
        self._outputs = tuple(Output(slot_name(name, slot), handler) for slot in range(count))

    def __len__(self) -> int:
        return len(self._outputs)

    def __getitem__(self, slot: int) -> Output:
        number = as_index(slot)
        if not 0 <= number < len(self._outputs):
            raise IndexError(
                BAD_SLOT.format(label=self._label, value=number, count=len(self._outputs))
            )
        return self._outputs[number]

    def __repr__(self) -> str:
        return f"<Outputs {self.name!r}: {len(self._outputs)} slots>"


def outputs_label(name: str, owner: str) -> str:
    """Return what a table of outputs is called in a failure."""
    return f"outputs {name!r} of handler {owner!r}"


class OutputNames:
    """The outputs of a program: numbers of names and slots, and back."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._numbers = {name: number for number, name in enumerate(names)}

    def number(self, name: str, slot: int | None = None) -> int:
        """Return the number of an output.

        Raises
        ------
        BadArgument
            If there is none, or it is a table and no slot is given.
        """
        key = name if slot is None else slot_name(name, slot)
        number = self._numbers.get(key)
        if number is not None:
            return number
        found = repr(name) if slot is None else f"{name!r} slot={slot!r}"
        if slot is None and slot_name(name, 0) in self._numbers:
            raise BadArgument(
                f"bad output: found={found}, a table, expected=a slot as well: slot=0"
            )
        known = " or ".join(map(repr, grouped(self._names))) or "none"
        raise BadArgument(f"bad output: found={found} expected={known}")

    def split(self, number: int) -> tuple[str, int | None]:
        """Return the name of an output, and its slot if it is one of a table."""
        name = self._names[number]
        found = _SLOT.fullmatch(name)
        return (name, None) if found is None else (found[1], int(found[2]))

    def of_given(self, given: Mapping[str, Given]) -> dict[int, QueueWriter]:
        """Return writers by number, from what a caller gives by name."""
        writers: dict[int, QueueWriter] = {}
        for name, found in given.items():
            if isinstance(found, Mapping):
                slots: Iterable[tuple[int, QueueWriter | None]] = found.items()
            elif isinstance(found, Sequence):
                slots = enumerate(found)
            else:
                writers[self.number(name)] = found
                continue
            for slot, writer in slots:
                if writer is not None:
                    writers[self.number(name, slot)] = writer
        return writers
