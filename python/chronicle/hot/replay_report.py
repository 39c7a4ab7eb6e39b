"""What a replay has found, and how messages are shown in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from chronicle.values import Value

if TYPE_CHECKING:
    from chronicle.message import MessageBase

__all__ = ["Difference", "InputShown", "MessageShown", "OutputReport", "ReplayReport", "shown"]

Verdict: TypeAlias = Literal["identical", "different", "unproved"]

INPUT_KINDS: Final = (
    "message",
    "command",
    "event",
    "idle",
    "start",
    "stop",
    "batch begin",
    "batch end",
)
"""By the number that the journal has for them."""


class MessageShown(Value):
    """A message, decoded as far as its schema is known.

    Parameters
    ----------
    type
        Name of the class, or ``type 7``.
    type_id, timestamp_ns
        Of the record.
    fields
        By name; ``None`` if there is no schema for it.
    payload
        The bytes.
    """

    __slots__ = ("type", "type_id", "timestamp_ns", "fields", "payload")  # noqa: RUF023
    type: str
    type_id: int
    timestamp_ns: int
    fields: Mapping[str, Any] | None
    payload: bytes

    def __init__(
        self,
        type: str,  # noqa: A002
        type_id: int,
        timestamp_ns: int,
        fields: Mapping[str, Any] | None,
        payload: bytes,
    ) -> None:
        self._set(type, type_id, timestamp_ns, fields, payload)


def shown(
    cls: type[MessageBase] | None, type_id: int, timestamp_ns: int, payload: bytes
) -> MessageShown:
    """Decode a message by its class, if there is one and the bytes are enough for it."""
    if cls is None or len(payload) < cls.size_bytes:
        return MessageShown(f"type {type_id}", type_id, timestamp_ns, None, payload)
    fields = cls.view(payload).as_dict()
    return MessageShown(cls.__name__, type_id, timestamp_ns, fields, payload)


class InputShown(Value):
    """One input of a handler.

    Parameters
    ----------
    number
        Counted from 1 over the run.
    journal_seq
        Of its record in the journal.
    kind
        ``message``, ``command``, ``event``, ``idle``, ``start``, ``stop``, ``batch begin`` or
        ``batch end``.
    source, path
        Of a message, or an event; otherwise ``None`` and empty.
    seq
        Of a message; of a command its ticket.
    now_ns
        The handler's clock.
    message
        What the handler was given; ``None`` for calls without a message.
    """

    __slots__ = (  # noqa: RUF023
        "number",
        "journal_seq",
        "kind",
        "source",
        "path",
        "seq",
        "now_ns",
        "message",
    )
    number: int
    journal_seq: int
    kind: str
    source: int | None
    path: str
    seq: int
    now_ns: int
    message: MessageShown | None

    def __init__(
        self,
        number: int,
        journal_seq: int,
        kind: str,
        source: int | None,
        path: str,
        seq: int,
        now_ns: int,
        message: MessageShown | None,
    ) -> None:
        self._set(number, journal_seq, kind, source, path, seq, now_ns, message)


class Difference(Value):
    """The first thing that was not as the journalled run had it.

    Parameters
    ----------
    kind
        ``output``: a message; ``count``: how many messages an output got; ``failure``: whether, or
        how, the handler failed; ``state``: a field of the state at the end; ``counter``.
    name
        Of the output, the field or the counter.
    field
        Of a message: the first that differs.
    expected, found
        In the journalled run, and now.
    seq
        Of the message in its output.
    expected_message, found_message
        The messages as a whole; ``None`` where there is none.
    input
        The input that was handled last; it caused the difference, if it is not one of the end.
    """

    __slots__ = (  # noqa: RUF023
        "kind",
        "name",
        "field",
        "expected",
        "found",
        "seq",
        "expected_message",
        "found_message",
        "input",
    )
    kind: Literal["output", "count", "failure", "state", "counter"]
    name: str
    field: str
    expected: Any
    found: Any
    seq: int | None
    expected_message: MessageShown | None
    found_message: MessageShown | None
    input: InputShown | None

    def __init__(
        self,
        kind: Literal["output", "count", "failure", "state", "counter"],
        name: str,
        *,
        expected: Any,
        found: Any,
        field: str = "",
        seq: int | None = None,
        expected_message: MessageShown | None = None,
        found_message: MessageShown | None = None,
        input: InputShown | None = None,  # noqa: A002
    ) -> None:
        self._set(kind, name, field, expected, found, seq, expected_message, found_message, input)


class OutputReport(Value):
    """How one output compares.

    Parameters
    ----------
    name
        The handler's name for it.
    equal
        Messages that were byte-identical.
    skipped
        Messages that could not be compared, because those of the journalled run are gone.
    """

    __slots__ = ("name", "equal", "skipped")  # noqa: RUF023
    name: str
    equal: int
    skipped: int

    def __init__(self, name: str, equal: int, skipped: int) -> None:
        self._set(name, equal, skipped)


class ReplayReport(Value):
    """What `replay` has found.

    Parameters
    ----------
    journal
        Path of the journal.
    run, runs
        Which of the runs that the journal holds, counted from 1, and how many it holds.
    thread, handler
        Of the hot thread; what was run.
    same_code
        Whether it is the machine code that wrote the journal; ``None`` if that cannot be known.
    inputs
        How many of each kind were given to the handler.
    outputs
        One for each output of the journalled run.
    state
        ``identical``, ``different`` or ``not compared``.
    difference
        The first one.
    unproved
        What could not be proved, and why.
    notes
        What else is worth knowing.
    clock_ns
        The handler's clock at its last input; 0 without one.
    """

    __slots__ = (  # noqa: RUF023
        "journal",
        "run",
        "runs",
        "thread",
        "handler",
        "same_code",
        "inputs",
        "outputs",
        "state",
        "difference",
        "unproved",
        "notes",
        "clock_ns",
    )
    journal: str
    run: int
    runs: int
    thread: str
    handler: str
    same_code: bool | None
    inputs: Mapping[str, int]
    outputs: tuple[OutputReport, ...]
    state: Literal["identical", "different", "not compared"]
    difference: Difference | None
    unproved: tuple[str, ...]
    notes: tuple[str, ...]
    clock_ns: int

    def __init__(
        self,
        *,
        journal: str,
        run: int,
        runs: int,
        thread: str,
        handler: str,
        same_code: bool | None,
        inputs: Mapping[str, int],
        outputs: tuple[OutputReport, ...],
        state: Literal["identical", "different", "not compared"],
        difference: Difference | None,
        unproved: tuple[str, ...],
        notes: tuple[str, ...],
        clock_ns: int,
    ) -> None:
        self._set(
            journal,
            run,
            runs,
            thread,
            handler,
            same_code,
            inputs,
            outputs,
            state,
            difference,
            unproved,
            notes,
            clock_ns,
        )

    @property
    def verdict(self) -> Verdict:
        """``identical``, ``different``, or ``unproved``: what could be compared is the same."""
        if self.difference is not None:
            return "different"
        return "unproved" if self.unproved else "identical"
