"""What the tests of orders share: a bus without files, and lives that end at any publication."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accounts import Log
from chronicle.hot import Handler, Info
from chronicle.message import MessageBase
from orders import Cancel, Execution, Forward, Order, Report

CLASSES = {cls.type_id: cls for cls in (Order, Cancel, Forward, Execution, Report)}


class Killed(BaseException):
    """The process is gone, in the middle of what it did."""


class Fuse:
    """Kills at one publication: the one that the count says, just before it or just after it."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.is_before = True

    def set(self, left: int | None, *, is_before: bool = True) -> None:
        self.left, self.is_before = left, is_before

    def burn(self, write: Callable[[], int]) -> int:
        if self.left is None:
            return write()
        self.left -= 1
        if self.left >= 0:
            return write()
        self.left = None
        if not self.is_before:
            write()
        raise Killed


class Tape:
    """A queue without files. It is the writer of outputs, and what lives read again."""

    def __init__(self, clock: Callable[[], int], fuse: Fuse | None = None) -> None:
        self.entries: list[tuple[int, Any]] = []
        self.times: list[int] = []
        self._clock = clock
        self._fuse = fuse or Fuse()

    def append(self, type_id: int, payload: bytes, *, timestamp_ns: int | None = None) -> int:
        def write() -> int:
            self.add(CLASSES[type_id].view(bytes(payload)))
            return len(self.entries)

        return self._fuse.burn(write)

    def add(self, message: MessageBase) -> None:
        self.entries.append((len(self.entries) + 1, message))
        self.times.append(self._clock())

    def info(self, seq: int, tag: int = 0) -> Info:
        message = self.entries[seq - 1][1]
        return Info(
            seq=seq, timestamp_ns=self.times[seq - 1], source=0, type_id=message.type_id, tag=tag
        )

    def give(self, handler: Handler, seq: int, tag: int = 0) -> None:
        """Hand one message to a handler, as its hot thread would."""
        handler.receive(self.entries[seq - 1][1], self.info(seq, tag))


def made(cls: type[MessageBase], **fields: Any) -> Any:
    """A message whose other fields are zero."""
    zeros = {f.name: b"" if f.type == "chars" else 0 for f in cls.FIELDS}
    return cls(**(zeros | fields))


def one_order(**changes: Any) -> Log:
    """A bus with one order that was filled in two parts, and one that the router refused."""
    session = 77
    order = {"price": 10_000, "symbol": b"ZXIET", "side": 1}
    execution: dict[str, Any] = {"cause": 1, "request": 1, "session": session, "order_id": 1}
    executions = [
        made(Execution, **execution, **order, kind=1, quantity=10, remaining=10),
        made(Execution, **execution, **order, kind=3, quantity=4, remaining=6, execution_id=1),
        made(
            Execution,
            **execution,
            **order,
            kind=3,
            quantity=6,
            remaining=0,
            execution_id=2,
            last=1,
            closed=1,
        ),
    ]
    reports = [
        made(Report, cause=seq, **{name: getattr(e, name) for name in _TOLD})
        for seq, e in enumerate(executions, 1)
    ]
    refused = made(
        Report,
        request=2,
        session=session,
        order_id=2,
        **order,
        quantity=99,
        kind=2,
        reason=4,
        closed=1,
    )
    return Log(
        sessions={"alpha": session},
        requests={
            "alpha": [
                (1, made(Order, order_id=1, **order, quantity=10, gateway=b"main")),
                (2, made(Order, order_id=2, **order, quantity=99, gateway=b"main")),
            ]
        },
        reports={("alpha", "main"): list(enumerate([*reports, refused], 1))},
        forwards={
            "main": [
                (
                    1,
                    made(
                        Forward,
                        cause=1,
                        session=session,
                        order_id=1,
                        **order,
                        quantity=10,
                        action=1,
                    ),
                )
            ]
        },
        executions={("sim", "main"): list(enumerate(executions, 1))},
    )


_TOLD = (
    *("request", "session", "order_id", "execution_id", "price", "quantity", "remaining"),
    *("symbol", "kind", "side", "reason", "closed"),
)


def changed(message: MessageBase, **fields: Any) -> Any:
    """A copy of a message with other fields."""
    values = {field.name: getattr(message, field.name) for field in type(message).FIELDS}
    return type(message)(**(values | fields))
