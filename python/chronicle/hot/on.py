"""`on`: which method of a handler takes what.

The decorators only mark the function; `chronicle.hot.handler.Handler` reads the marks when the
class is made. So this module imports nothing that costs time, and ``chronicle.on`` is cheap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, TypeVar, overload

from chronicle.hot.buffers import Bytes
from chronicle.message import MessageBase

if TYPE_CHECKING:
    from chronicle.hot.info import Info

__all__ = ["KIND_COMMAND", "KIND_DATA", "KIND_DATAGRAM", "KIND_EVENT", "Mark", "mark_of", "on"]

KIND_DATA: Final = 0
KIND_COMMAND: Final = 1
KIND_EVENT: Final = 2
#: Those between are of calls without a message; `chronicle.hot.replay_report` names them.
KIND_DATAGRAM: Final = 8

EVENT_TYPE_IDS: Final = range(65_001, 65_004)
"""Type ids of the events that the loop makes itself; see `chronicle.hot.events`."""

_MARK: Final = "_chronicle_on"

_Self = TypeVar("_Self")
_Message = TypeVar("_Message")
_Hook = TypeVar("_Hook", bound=Callable[[Any], None])


class Mark(NamedTuple):
    """What a decorated method takes.

    Attributes
    ----------
    hook
        ``""`` for a message, else ``idle``, ``start`` or ``stop``.
    kind
        0 data, 1 command, 2 event, 8 datagram.
    message
        The message class; ``None`` for hooks, and for methods that take bytes.
    type_id
        Which messages a method takes as bytes; 0 for all others.
    """

    hook: str
    kind: int
    message: type[MessageBase] | None
    type_id: int = 0

    @property
    def takes_bytes(self) -> bool:
        """Whether the method gets `Bytes`."""
        return self.kind == KIND_DATAGRAM or self.type_id != 0


def mark_of(value: object) -> Mark | None:
    """Return the mark of a function, or ``None``."""
    found = getattr(value, _MARK, None)
    return found if isinstance(found, Mark) else None


class _Takes(Protocol[_Message]):
    """A decorator for ``(self, message)`` and ``(self, message, info)``; it returns the method."""

    @overload
    def __call__(
        self, method: Callable[[_Self, _Message], None]
    ) -> Callable[[_Self, _Message], None]: ...
    @overload
    def __call__(
        self, method: Callable[[_Self, _Message, Info], None]
    ) -> Callable[[_Self, _Message, Info], None]: ...


class _Marker(Generic[_Message]):
    def __init__(self, mark: Mark) -> None:
        self._mark = mark

    def __call__(self, method: Any) -> Any:
        return _marked(method, self._mark)


def _marked(method: Any, mark: Mark) -> Any:
    if not callable(method) or not hasattr(method, "__code__"):
        raise TypeError(f"on(...) decorates a plain method, not {method!r}; put it innermost")
    if mark_of(method) is not None:
        raise TypeError(f"method {method.__name__!r} has two on(...) decorators; write two methods")
    setattr(method, _MARK, mark)
    return method


def _message_class(cls: object) -> type[MessageBase]:
    if not isinstance(cls, type) or not issubclass(cls, MessageBase):
        raise TypeError(
            f"on(...) takes a message class, not {cls!r}; decorate the class with "
            "@chronicle.message(type_id)"
        )
    return cls


class _On:
    """Mark a handler's method: ``@on(Trade)`` calls it for every message of class ``Trade``.

    ``@on.command(SetLimit)`` takes commands that the sidecar sends, ``@on(SourceGap)`` and its kin
    events of the loop, ``@on.idle`` is called when a turn found no message, ``@on.start`` and
    ``@on.stop`` once each. ``@on.datagram`` takes what a packet ring receives, and
    ``@on.bytes(type_id)`` the messages of one type, of whatever length: both as `Bytes`.

    A method for messages takes the message and, if it wants one, an `Info`. It returns nothing.

    Examples
    --------
    >>> from chronicle.hot import Handler
    >>> from chronicle.message import message, i64
    >>> @message(5)
    ... class Tick:
    ...     price: i64
    >>> class Last(Handler):
    ...     price: i64
    ...     @on(Tick)
    ...     def tick(self, tick: Tick) -> None:
    ...         self.price = tick.price
    >>> last = Last()
    >>> last.tick(Tick(price=3))
    >>> last.price
    3
    """

    def __call__(self, message: type[_Message]) -> _Takes[_Message]:
        cls = _message_class(message)
        kind = KIND_EVENT if cls.type_id in EVENT_TYPE_IDS else KIND_DATA
        return _Marker(Mark("", kind, cls))

    def command(self, message: type[_Message]) -> _Takes[_Message]:
        """Mark the method that takes commands of this class."""
        return _Marker(Mark("", KIND_COMMAND, _message_class(message)))

    def bytes(self, type_id: int) -> _Takes[Bytes]:
        """Mark the method that takes messages of this type as `Bytes`, whatever their length."""
        if not isinstance(type_id, int) or isinstance(type_id, bool):
            raise TypeError(f"on.bytes(...) takes a type id, not {type_id!r}")
        if not 1 <= type_id <= 0xFFFF or type_id in EVENT_TYPE_IDS:
            raise ValueError(
                f"on.bytes(...) takes the type id of messages: value={type_id} range=1..65535, "
                "without those of events"
            )
        return _Marker(Mark("", KIND_DATA, None, int(type_id)))

    @overload
    def datagram(
        self, method: Callable[[_Self, Bytes], None]
    ) -> Callable[[_Self, Bytes], None]: ...
    @overload
    def datagram(
        self, method: Callable[[_Self, Bytes, Info], None]
    ) -> Callable[[_Self, Bytes, Info], None]: ...
    def datagram(self, method: Any) -> Any:
        """Mark the method that takes every datagram of the packet rings, as `Bytes`."""
        return _marked(method, Mark("", KIND_DATAGRAM, None))

    def idle(self, method: _Hook) -> _Hook:
        """Mark the method that is called when a turn of the loop found nothing to do."""
        marked: _Hook = _marked(method, Mark("idle", KIND_DATA, None))
        return marked

    def start(self, method: _Hook) -> _Hook:
        """Mark the method that is called once, before the first message."""
        marked: _Hook = _marked(method, Mark("start", KIND_DATA, None))
        return marked

    def stop(self, method: _Hook) -> _Hook:
        """Mark the method that is called once, after a clean stop."""
        marked: _Hook = _marked(method, Mark("stop", KIND_DATA, None))
        return marked


on: Final = _On()
"""The decorators; see `_On`."""
