"""`replay`: gives a handler the inputs of a journal again, and compares all that it does.

The core reads the journal and the sources, feeds the handler and compares its messages with those
of the outputs; it comes back where something has to be decided, and that is done here. Original
queues are only read, by readers without a name; what the handler publishes is kept in memory until
it has been compared.

*Identical* means: every message that the handler published has the same bytes, number and timestamp
as the one in the output's queue, there are as many of them, the handler ended in the same way, and
state and counters are the same. Where one of these could not be looked at, the result is
*unproved*, and says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from chronicle import _core
from chronicle.errors import BadArgument, ChronicleError, CorruptRecord, DecodeError, Gap
from chronicle.hot.journal import (
    JOURNAL_FINAL,
    JOURNAL_HEAD,
    JOURNAL_OUTPUT,
    JOURNAL_SOURCE,
    Ended,
    Place,
    StatePart,
    boot_id,
    decode_final,
    decode_hand_off,
    decode_head,
    decode_output,
    layout_of_dtype,
    state_parts,
    versions,
)
from chronicle.hot.on import KIND_COMMAND, KIND_DATA, KIND_EVENT
from chronicle.hot.outputs import grouped, is_slot
from chronicle.hot.program import Program, as_program, handler_path, import_handler
from chronicle.hot.replay_report import (
    INPUT_KINDS,
    Difference,
    InputShown,
    OutputReport,
    ReplayReport,
    shown,
)
from chronicle.queue import Queue, inspect

if TYPE_CHECKING:
    from chronicle.hot.replay_report import MessageShown
    from chronicle.message import MessageBase
    from chronicle.queue import QueueReader

__all__ = ["replay"]

StrPath: TypeAlias = str | os.PathLike[str]
#: Called with the number of inputs that were given to the handler so far.
Progress: TypeAlias = Callable[[int], object]

#: Records between looks at Ctrl-C and at the caller's progress.
_SLICE: Final = 65_536
_NO_SOURCE: Final = (1 << 32) - 1


def replay(
    journal: StrPath,
    handler: Any = None,
    *,
    sources: Mapping[int | str, StrPath] | None = None,
    run: int | None = None,
    until: int | None = None,
    progress: Progress | None = None,
) -> ReplayReport:
    """Give a handler the inputs of a journal again; return what was the same and what was not.

    Blocks; some hundred nanoseconds per input and what the handler itself takes, without the
    interpreter lock. Compiles the handler, if it is not in the cache. Reads the queues that the
    journal names, and writes to none.

    Parameters
    ----------
    journal
        Path of the queue that a hot thread had as its `journal`.
    handler
        What to run: as for `HotThread`. By default the class that the journal names is imported.
    sources
        Where messages are, if not where they were: by source number, or by the path that the
        journal has.
    run
        Which run, if the journal holds several: counted from 1. By default the last.
    until
        Stop after so many inputs.
    progress
        Called now and then.

    Raises
    ------
    DecodeError
        If it is no journal, or its head or a hand-off is damaged.
    BadArgument
        If the handler cannot be found, or cannot be replayed: a plain callable has no state that
        could be compared.
    NotAQueue
        If there is no queue at `journal`.
    """
    path = os.fspath(journal)
    heads, trouble = _find_runs(path)
    number = len(heads) if run is None else run
    if not 1 <= number <= len(heads):
        raise BadArgument(
            f"bad run: found={number} expected=1 to {len(heads)}, as many as the journal has"
        )
    if until is not None and until < 0:
        raise BadArgument(f"bad until: found={until} expected=0 or more")
    reader = Queue.open_subscriber(path, None, start=heads[number - 1])
    again = _Again(path, reader, handler, sources or {})
    try:
        again.begin()
        again.go_on(until, progress)
        if trouble and number == len(heads) and again.ended is None:
            again.unproved.append(trouble)
        return again.report(number, len(heads))
    finally:
        again.close()


def _find_runs(path: str) -> tuple[list[int], str]:
    """Return where runs begin, and what keeps the journal from being read to its end."""
    heads: list[int] = []
    trouble = ""
    with Queue.open_subscriber(path, None, start="earliest") as reader:
        while True:
            try:
                found = reader.next_run(count_max=_SLICE)
            except Gap as gap:
                if heads:
                    trouble = f"the journal has a gap: {gap}"
                continue
            except CorruptRecord as error:
                trouble = f"the journal is damaged: {error}"
                break
            if found is None:
                break
            if found.type_id == JOURNAL_HEAD:
                heads += range(found.first_seq, found.first_seq + found.count)
    if not heads:
        raise DecodeError(
            f"'{path}' holds no head of a journalled run; was it made by HotThread(journal=...), "
            f"and is its beginning still there? {trouble}".rstrip()
        )
    return heads, trouble


class _Output(NamedTuple):
    """An output of the journalled run."""

    name: str
    #: Its number in the handler that runs now; ``None`` if that has none of this name.
    number: int | None


class _Again:
    """One replay under way."""

    def __init__(
        self, path: str, reader: QueueReader, handler: Any, overrides: Mapping[int | str, StrPath]
    ) -> None:
        self._path = path
        self._handler = handler
        self._overrides = {
            key if isinstance(key, int) else os.path.abspath(key): os.fspath(value)  # noqa: PTH100
            for key, value in overrides.items()
        }
        self._reader: QueueReader | None = reader
        self._core: _core.Replay | None = None
        self._queues: dict[str, Queue] = {}
        self._sources: dict[int, str] = {}
        self._places: dict[str, Place] = {}
        self._written: set[str] = set()
        self._ends_here = False
        self._state: Literal["identical", "different", "not compared"] = "not compared"
        self._reproduced = False
        self.ended: Ended | None = None
        self.difference: Difference | None = None
        self.unproved: list[str] = []
        self.notes: list[str] = []

    def close(self) -> None:
        if self._core is not None:
            self._core.close()
        if self._reader is not None:
            self._reader.close()

    @property
    def core(self) -> _core.Replay:
        assert self._core is not None  # Made by `begin`.
        return self._core

    # --- The head ---

    def begin(self) -> None:
        """Read the head, and set up everything as it was at the start."""
        assert self._reader is not None  # Taken below, once.
        record = self._reader.next()
        if record is None or record.type_id != JOURNAL_HEAD:
            raise DecodeError(f"the head of '{self._path}' is not there any more")
        self._head = head = decode_head(bytes(record.payload))
        self._program = program = self._make_program()
        self._outputs = [
            _Output(name, program.outputs.index(name) if name in program.outputs else None)
            for name in head.outputs
        ]
        self._layout = _layout_of(program)
        self._core = _core.Replay(
            program.addresses,
            program.flags,
            self._initial_state(),
            len(program.counters),
            len(program.outputs),
            self._reader,
        )
        self._tell_about_code()
        self._rebooted = head.boot_id != boot_id()
        for number, place in enumerate(head.sources):
            self._set_source(number, place)
        for name, place in head.writers.items():
            self._set_output(self._outputs[head.outputs.index(name)], place)

    def _make_program(self) -> Program:
        head = self._head
        if self._handler is None and head.callable:
            raise BadArgument(
                f"the handler of '{self._path}' was the plain callable {head.program!r}: it has no "
                "state or outputs that could be compared; write it as a chronicle.Handler"
            )
        if self._handler is None and not head.handler:
            raise BadArgument(
                f"the handler of '{self._path}' ({head.program!r}) has no name that can be "
                "imported; pass it: replay(path, handler), or --handler module:name"
            )
        handler = self._handler
        if handler is None:
            handler = import_handler(head.handler)
        elif isinstance(handler, type):
            handler = handler()
        self._handler = handler
        program = as_program(handler)
        if program.callable is not None:
            raise BadArgument(
                "bad handler: found=a plain callable expected=a chronicle.Handler or NativeHandler;"
                " a callable has no state or outputs that could be compared"
            )
        return program

    def _initial_state(self) -> bytes:
        """Return the state that the run began with, in the layout of the handler that runs now."""
        head, program = self._head, self._program
        if not self._layout and not head.layout and len(program.state) == len(head.state):
            return head.state
        if self._layout == head.layout and len(program.state) == len(head.state):
            return head.state
        state = bytearray(program.state)
        new = {part.name: part for part in self._layout}
        moved = [p for p in head.layout if p.name in new and new[p.name].shape == p.shape]
        for part in moved:
            to = new[part.name].offset
            state[to : to + part.size_bytes] = head.state[
                part.offset : part.offset + part.size_bytes
            ]
        lost = [p.name for p in head.layout if p not in moved]
        added = [name for name in new if name not in {p.name for p in moved}]
        self.unproved.append(
            "the layout of the state has changed, so only fields that both have are compared; "
            f"not taken over: {', '.join(lost) or 'none'}; new: {', '.join(added) or 'none'}"
        )
        return bytes(state)

    def _tell_about_code(self) -> None:
        head, program = self._head, self._program
        if self.same_code is False:
            self.notes.append(
                f"the code is not the one that wrote the journal: key={program.key[:12]} "
                f"expected={head.key[:12]}"
            )
            now = versions()
            changed = [
                f"{name} {value} then, {now.get(name, 'unknown')} now"
                for name, value in head.versions.items()
                if now.get(name) != value
            ]
            if changed:
                self.notes.append("versions: " + ", ".join(changed))
        elif self.same_code is None:
            self.notes.append("whether it is the same code is not known: it has no key")
        if not program.audited:
            self.notes.append(
                "the handler is unaudited: whatever it reads besides its inputs is not in a journal"
            )
        for what, then, now_names in (
            ("outputs", grouped(head.outputs), grouped(program.outputs)),
            ("counters", head.counters, program.counters),
        ):
            if set(then) != set(now_names):
                self.notes.append(
                    f"the handler has other {what}: {', '.join(now_names) or 'none'}; "
                    f"it had {', '.join(then) or 'none'}"
                )

    @property
    def same_code(self) -> bool | None:
        keys = self._head.key, self._program.key
        return keys[0] == keys[1] if all(keys) else None

    # --- Queues ---

    def _open(self, what: str, path: str, seq: int | None) -> QueueReader | None:
        """Open a reader at `seq`, or at the beginning; say so if that cannot be."""
        try:
            queue = self._queues.get(path) or self._queues.setdefault(path, Queue(path))
            return queue.open_subscriber(path, None, start="earliest" if seq is None else seq)
        except (ChronicleError, OSError) as error:
            self.notes.append(f"{what} cannot be opened: {error}")
            return None

    def _set_source(self, number: int, place: Place) -> None:
        path = self._overrides.get(number, self._overrides.get(place.path, place.path))
        what = f"source {number} ('{path}')"
        reader = self._open(what, path, None)
        self._sources[number] = path
        if reader is not None and reader.queue_id != place.queue_id:
            self.notes.append(
                f"{what} is another queue than the one that was read: "
                f"id={reader.queue_id} expected={place.queue_id}"
            )
        if reader is not None:
            self._check_schema(what, path)
        self.core.set_source(number, place.tag, reader)

    def _check_schema(self, what: str, path: str) -> None:
        """Tell of classes that the handler takes and the queue has in another layout."""
        spec = getattr(self._handler, "SPEC", None)
        for entry in spec.entries if spec is not None else ():
            cls = self._queues[path].types.get(entry.message.type_id)
            if entry.kind == KIND_DATA and cls is not None and cls.schema != entry.message.schema:
                self.notes.append(
                    f"{what} has {cls.__name__} in another layout than the handler takes"
                )

    def _set_output(self, output: _Output, place: Place | None) -> None:
        if place is None:
            # It has no writer any more.
            self._places.pop(output.name, None)
            if output.number is not None:
                self.core.set_output(output.number, 0, None)
            return
        self._places[output.name] = place
        self._written.add(output.name)
        if output.number is None:
            return
        what = f"output '{output.name}' ('{place.path}')"
        reader = self._open(what, place.path, place.next_seq)
        if reader is not None and reader.queue_id != place.queue_id:
            self.notes.append(
                f"{what} is another queue than the one that was written: "
                f"id={reader.queue_id} expected={place.queue_id}"
            )
            reader.close()
            reader = None
        self.core.set_output(output.number, place.next_seq, reader)

    def _others_wrote(self, name: str) -> bool:
        """Whether the output's queue has had another writer since."""
        place = self._places[name]
        try:
            epoch: int = inspect(place.path)["epoch"]
        except (ChronicleError, OSError):
            return True
        return epoch != place.epoch

    def _class_in(self, path: str, type_id: int) -> type[MessageBase] | None:
        queue = self._queues.get(path)
        return None if queue is None else queue.types.get(type_id)

    # --- The run ---

    def go_on(self, until: int | None, progress: Progress | None) -> None:
        """Feed inputs until something ends it."""
        while self.difference is None and not self._ends_here:
            fed = sum(self.core.inputs())
            left = _SLICE if until is None else min(_SLICE, until - fed)
            if left <= 0:
                self.unproved.append(f"stopped after {fed} inputs, as asked for")
                return
            try:
                kind, *found = self.core.run(left)
            except (Gap, CorruptRecord) as error:
                self._stop(f"the journal cannot be read any further: {error}")
                return
            _PAUSES[kind](self, *found)
            if progress is not None:
                progress(sum(self.core.inputs()))

    def _stop(self, why: str) -> None:
        self.unproved.append(why)
        self._ends_here = True

    def _enough(self) -> None:
        """Nothing came up."""

    def _end(self) -> None:
        why = "the journal has no final record: "
        try:
            is_live = bool(inspect(self._path)["writer_live"])
        except (ChronicleError, OSError):
            is_live = False
        if is_live:
            why += "its hot thread still runs, or has not been stopped"
        else:
            why += "the process ended before it stopped its hot thread"
        self._stop(f"{why}; messages are compared as far as they go, the state at the end is not")
        if not is_live and not self._rebooted:
            self._check_cut()

    def _check_cut(self) -> None:
        """Look for messages that the run published and the handler does not publish now."""
        for output in self._outputs:
            place = self._places.get(output.name)
            if place is None or self._others_wrote(output.name):
                continue
            reader = self._open(f"output '{output.name}'", place.path, None)
            if reader is None or reader.queue_id != place.queue_id:
                continue
            with reader:
                reader.seek("latest")
                now = place.next_seq
                if output.number is not None:
                    now = self.core.outputs()[output.number][0]
                if reader.next_seq > now:
                    self._check_count(output, reader.next_seq)

    def _record(self, type_id: int, seq: int, data: bytes) -> None:
        if type_id == JOURNAL_SOURCE:
            number, _, place = decode_hand_off(data)
            self._set_source(number, place)
        elif type_id == JOURNAL_OUTPUT:
            number, before, to = decode_output(data)
            if number >= len(self._outputs):
                raise DecodeError(f"record seq={seq} of the journal has no output={number}")
            output = self._outputs[number]
            if before:
                self._check_count(output, before)
            self._set_output(output, to)
        elif type_id == JOURNAL_FINAL:
            self._final(decode_final(data))
        elif type_id == JOURNAL_HEAD:
            self._end()
        else:
            raise DecodeError(f"record seq={seq} of the journal has an unknown type_id={type_id}")

    def _damaged(self, seq: int, why: str) -> None:
        raise DecodeError(f"record seq={seq} of the journal is damaged: {why}")

    def _missing(self, source: int, seq: int, why: str, _error: object) -> None:
        path = self._sources.get(source, "unknown")
        self._stop(
            f"message seq={seq} of source {source} ('{path}') cannot be read: {why}; "
            "nothing behind it can be compared"
        )

    def _differs(self, output: int, seq: int, expected: Any, found: Any) -> None:
        name = self._program.outputs[output]
        place = self._places[name]
        what = f"output '{name}' ('{place.path}')"
        was_cut = self._is_cut_here()
        if expected is None:
            if was_cut:
                self.notes.append(f"{what} ends at seq={seq}, with the run")
                return
            if self._rebooted:
                self._leave(output, f"{what} ends at seq={seq}; the machine has rebooted since")
                return
        elif was_cut and self._others_wrote(name):
            self._leave(output, f"{what} was written by others from seq={seq} on")
            return
        cls = self._class_in(place.path, found[0]) or self._own_class(found[0])
        now = shown(cls, *found)
        then = None
        if expected is not None:
            cls = self._class_in(place.path, expected[0]) or self._own_class(expected[0])
            then = shown(cls, *expected)
        field, was, is_now = _first_field(then, now)
        self.difference = Difference(
            "output",
            name,
            field=field,
            expected=was,
            found=is_now,
            seq=seq,
            expected_message=then,
            found_message=now,
            input=self._last_input(),
        )

    def _leave(self, output: int, why: str) -> None:
        self.unproved.append(f"{why}, so it is not compared from there on")
        self.core.leave_output(output)

    def _unreadable(self, output: int, error: Exception) -> None:
        name = self._program.outputs[output]
        self.unproved.append(f"output '{name}' cannot be read any further: {error}")

    def _next_type(self) -> int | None:
        try:
            return self.core.peek()
        except (Gap, CorruptRecord):
            return None

    def _is_cut_here(self) -> bool:
        """Whether the run ended in the middle of what the last input did."""
        next_type = self._next_type()
        if next_type in (None, JOURNAL_HEAD):
            return True
        return next_type == JOURNAL_FINAL and self._peek_final().how == "output"

    def _peek_final(self) -> Ended:
        """Read the final record that comes next, by a reader of our own."""
        last = self.core.last()
        assert last is not None  # Something was published, so there was an input.
        with Queue.open_subscriber(self._path, None, start=last[0] + 1) as reader:
            record = reader.next()
            if record is None or record.type_id != JOURNAL_FINAL:
                raise DecodeError(f"the final record of '{self._path}' is not there any more")
            return decode_final(bytes(record.payload))

    def _failed(self, failure: dict[str, Any]) -> None:
        text = self._explain(failure)
        next_type = self._next_type()
        if next_type == JOURNAL_FINAL and self._peek_final().how in ("handler", "output"):
            self._reproduced = True
            self.notes.append(f"the handler failed on the last input, as it did then: {text}")
            return
        if next_type in (None, JOURNAL_HEAD):
            self._reproduced = True
            self.notes.append(
                f"the handler failed on the last input, which may be why the run ended: {text}"
            )
            return
        self.difference = Difference(
            "failure", "", expected="no failure", found=text, input=self._last_input()
        )

    def _explain(self, failure: dict[str, Any]) -> str:
        if failure["text"]:
            return str(failure["text"])
        if self._program.explain is not None:
            return self._program.explain(failure["info"], failure["code"])
        return f"it returned {failure['returned']}, fail_code={failure['code']}"

    # --- The end ---

    def _final(self, ended: Ended) -> None:
        self.ended = ended
        self._ends_here = True
        head = self._head
        if len(ended.state) != len(head.state) or len(ended.counters) != len(head.counters):
            raise DecodeError("the final record of the journal does not belong to its head")
        if ended.how == "output":
            self.unproved.append(
                "an output refused a message of the last input, so the state behind it is not "
                "compared"
            )
            return
        if ended.how == "handler" and not self._reproduced:
            self.difference = Difference(
                "failure",
                "",
                expected="the handler fails",
                found="no failure",
                input=self._last_input(),
            )
            return
        if ended.how == "other":
            self.notes.append("the run ended because something besides the handler failed")
        for output, next_seq in zip(self._outputs, ended.next_seqs, strict=False):
            if next_seq:
                self._check_count(output, next_seq)
        self._check_state(ended)
        self._check_counters(ended)

    def _check_count(self, output: _Output, next_seq: int) -> None:
        """Compare how many messages an output got in all."""
        place = self._places.get(output.name)
        if place is None or self.difference is not None:
            return
        now = place.next_seq
        if output.number is not None:
            now = self.core.outputs()[output.number][0]
        if now != next_seq:
            self.difference = Difference(
                "count",
                output.name,
                expected=next_seq - place.next_seq,
                found=now - place.next_seq,
                seq=now,
                input=self._last_input(),
            )

    def _check_state(self, ended: Ended) -> None:
        head, state = self._head, self.core.state()
        if self._layout == head.layout and len(state) == len(ended.state):
            if state == ended.state:
                self._state = "identical"
                return
            path, then, now = next(state_parts(head.layout, ended.state, state))
        else:
            # The result can be "different" or "unproved" only: the layouts are not the same.
            found = self._common_difference(ended.state, state)
            if found is None:
                return
            path, then, now = found
        self._state = "different"
        if self.difference is None:
            self.difference = Difference(
                "state", path, expected=then, found=now, input=self._last_input()
            )

    def _common_difference(self, then: bytes, now: bytes) -> tuple[str, Any, Any] | None:
        new = {part.name: part for part in self._layout}
        for part in self._head.layout:
            other = new.get(part.name)
            if other is None or other.shape != part.shape:
                continue
            a = then[part.offset : part.offset + part.size_bytes]
            b = now[other.offset : other.offset + other.size_bytes]
            alone = StatePart(part.name, part.type, 0, part.size, part.count, part.parts)
            for found in state_parts((alone,), a, b):
                return found
        return None

    def _check_counters(self, ended: Ended) -> None:
        now = dict(zip(self._program.counters, self.core.counters(), strict=True))
        for name, then in zip(self._head.counters, ended.counters, strict=True):
            if name in now and now[name] != then and self.difference is None:
                self.difference = Difference(
                    "counter", name, expected=then, found=now[name], input=self._last_input()
                )

    # --- What is shown ---

    def _own_class(self, type_id: int, kind: int | None = None) -> type[MessageBase] | None:
        """Return a class of the handler's own, for what no queue has a schema of."""
        spec = getattr(self._handler, "SPEC", None)
        for entry in spec.entries if spec is not None else ():
            if entry.message.type_id == type_id and kind in (None, entry.kind):
                found: type[MessageBase] = entry.message
                return found
        return None

    def _last_input(self) -> InputShown | None:
        last = self.core.last()
        if last is None:
            return None
        journal_seq, kind, type_id, source, seq, timestamp_ns, now_ns, payload = last
        path, message = "", None
        if kind in (KIND_DATA, KIND_COMMAND, KIND_EVENT):
            if source != _NO_SOURCE:
                path = self._sources.get(source, "")
            cls = self._class_in(path, type_id) if kind == KIND_DATA else None
            cls = cls or self._own_class(type_id, kind)
            message = shown(cls, type_id, timestamp_ns, payload)
        return InputShown(
            sum(self.core.inputs()),
            journal_seq,
            INPUT_KINDS[kind],
            None if message is None or source == _NO_SOURCE else source,
            path,
            seq,
            now_ns,
            message,
        )

    def report(self, run: int, runs: int) -> ReplayReport:
        found = self.core.outputs()
        outputs = []
        for output in self._outputs:
            if is_slot(output.name) and output.name not in self._written:
                continue  # A slot that never had a writer.
            equal = skipped = 0
            if output.number is not None:
                _, equal, skipped, gap = found[output.number]
                if skipped:
                    self.unproved.append(_skipped(output.name, skipped, gap))
            outputs.append(OutputReport(output.name, equal, skipped))
        last = self.core.last()
        return ReplayReport(
            journal=self._path,
            run=run,
            runs=runs,
            thread=self._head.thread,
            handler=handler_path(self._handler) or self._program.name,
            same_code=self.same_code,
            inputs=dict(zip(INPUT_KINDS, self.core.inputs(), strict=True)),
            outputs=tuple(outputs),
            state=self._state,
            difference=self.difference,
            unproved=tuple(self.unproved),
            notes=tuple(self.notes),
            clock_ns=0 if last is None else last[6],
        )


_PAUSES: Final[dict[str, Callable[..., None]]] = {
    "enough": _Again._enough,
    "end": _Again._end,
    "record": _Again._record,
    "damaged": _Again._damaged,
    "missing": _Again._missing,
    "differs": _Again._differs,
    "unreadable": _Again._unreadable,
    "failed": _Again._failed,
}


def _layout_of(program: Program) -> tuple[StatePart, ...]:
    dtype = program.dtype_of_state()
    return () if dtype is None else layout_of_dtype(dtype)


def _skipped(name: str, skipped: int, gap: tuple[int, int, str] | None) -> str:
    text = f"{skipped} messages of output '{name}' were not compared: "
    if gap is None:
        return text + "its queue cannot be read there"
    first, after, reason = gap
    return f"{text}messages {first} to {after - 1} are gone ({reason})"


def _first_field(then: MessageShown | None, now: MessageShown) -> tuple[str, Any, Any]:
    """Return the first field in which two messages differ, and both values."""
    if then is None:
        return "", None, None
    if then.type_id != now.type_id:
        return "type_id", then.type_id, now.type_id
    if then.payload != now.payload:
        if then.fields is not None and now.fields is not None:
            for name, value in then.fields.items():
                other = now.fields[name]
                # A NaN is not equal to itself, but its bytes may be.
                if value != other and not (value != value and other != other):
                    return name, value, other
        if len(then.payload) != len(now.payload):
            return "length", len(then.payload), len(now.payload)
        at = next(
            i for i, (a, b) in enumerate(zip(then.payload, now.payload, strict=True)) if a != b
        )
        return f"byte {at}", then.payload[at], now.payload[at]
    return "timestamp_ns", then.timestamp_ns, now.timestamp_ns
