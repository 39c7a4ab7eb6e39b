"""`HotThread`: a native thread that runs a handler and nothing else.

The object is the sidecar's side of it: it starts and stops the thread, sends commands, and takes
what comes back. All methods may be called from any thread; a lock keeps those apart that drain.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from chronicle._core import HotCore, Provisioner
from chronicle.channel import AddReader, AddWriter, RemoveReader, RemoveWriter, Stop
from chronicle.errors import (
    BadArgument,
    ChannelFull,
    Closed,
    CommandRefused,
    Forked,
    HotThreadFailed,
)
from chronicle.hot.acks import Ack, Refused
from chronicle.hot.ended import Counts, failed
from chronicle.hot.guard import GuardMode
from chronicle.hot.journal import encode_head, encode_place
from chronicle.hot.kernel import core_interrupts, thread_counters
from chronicle.hot.meter import Histogram, HotStatus
from chronicle.hot.outputs import OutputNames
from chronicle.hot.program import Program, as_program, handler_path
from chronicle.hot.told import Event, Told
from chronicle.message import MessageBase

if TYPE_CHECKING:
    from chronicle.hot.counters import CountersFile
    from chronicle.hot.outputs import Given
    from chronicle.packets import PacketRing
    from chronicle.queue import QueueReader, QueueWriter

__all__ = ["HotThread"]

#: How long a caller sleeps between looks at the hot thread, in seconds.
_NAP_S: Final = 0.0001
#: How long after the last `HotThread.poll` a thread still counts as supervised, in seconds.
_SUPERVISED_S: Final = 1.0
#: Longest time that the end of the interpreter waits for one hot thread, in seconds.
_EXIT_PATIENCE_S: Final = 5.0
#: Those that the end of the interpreter has to stop.
_running: weakref.WeakSet[HotThread] = weakref.WeakSet()


class HotThread:
    """A native thread that runs a handler on messages of its readers, and does nothing else.

    The thread owns its readers, writers and packet rings: using their Python objects raises `Moved`
    until `stop` gives them back. It makes no system call, allocates nothing and never takes the
    interpreter lock (unless the handler is a plain callable). Everything around it is done by
    whoever calls `poll`, which `chronicle.Sidecar` does by itself.

    Parameters
    ----------
    handler
        A `chronicle.Handler` (compiled and audited), a `NativeHandler`, or a callable that takes a
        `Message`, or a `Datagram` of a packet ring (it takes the interpreter lock per batch).
    readers
        Sources to begin with; ``AddReader(reader, tag=7)`` for one with a tag.
    packets
        Rings of datagrams; the place of each is its number. Not together with `journal`.
    outputs
        Writers by the names that the handler gives its outputs; of a table of outputs a dict by
        slot, or a sequence in which ``None`` is a slot without a writer.
    name
        Role name: the thread is ``chr-hot:<name>`` in ``top -H``, its log is
        ``chronicle.hot.<name>``.
    core
        Core to run on; should be isolated. By default wherever the scheduler likes.
    wait
        When nothing is there: ``"spin"`` polls; ``"hybrid"`` polls for `spin_ns` and then sleeps;
        ``"sleep"`` sleeps at once.
    guard
        What happens to system calls of the thread: ``"observe"`` reports them, ``"enforce"``
        refuses them and stops the thread, ``"off"`` is without a filter. By default ``"observe"``,
        and ``"off"`` for a callable, since the interpreter makes such calls all the time.
    meter
        ``"loop"`` times turns and one message in 64, ``"full"`` every message, ``"off"`` nothing.
    mode
        How sources are merged; see `FanInReader`.
    fifo_priority
        1 to 99 for SCHED_FIFO.
    lock_memory
        Keep what the loop uses in memory.
    sources_max, commands_max, log_records
        Room for sources, commands on their way, and log records that were not drained yet.
    commit
        Commit each message that was handled.
    strict
        Fail to start if the kernel refuses something, instead of warning.
    journal
        A writer whose queue takes every input, for ``chronicle replay``.
    state
        A state record to start with instead of the handler's initial one.
    provisioner
        Serves the readers and writers that have none; by default one of its own.
    counters_file
        Takes the thread's counts, so that other processes can look at them.

    Examples
    --------
    >>> import chronicle, tempfile
    >>> tmp = tempfile.TemporaryDirectory()
    >>> writer = chronicle.Queue.open_publisher(f"{tmp.name}/ticks", segment_bytes=1 << 16)
    >>> reader = chronicle.Queue.open_subscriber(f"{tmp.name}/ticks", "me")
    >>> seen = []
    >>> def handler(message):
    ...     seen.append(message.seq)
    >>> seq = writer.append(1, b"hello")
    >>> with HotThread(handler, readers=[reader], wait="hybrid") as hot:
    ...     while not seen:
    ...         acks = hot.poll()
    >>> seen
    [1]
    >>> reader.close(); writer.close(); tmp.cleanup()
    """

    def __init__(
        self,
        handler: Any,
        *,
        readers: Iterable[QueueReader | AddReader] = (),
        packets: Iterable[PacketRing] = (),
        outputs: Mapping[str, Given] | None = None,
        name: str | None = None,
        core: int | None = None,
        wait: Literal["spin", "hybrid", "sleep"] = "spin",
        spin_ns: int = 20_000,
        guard: GuardMode | None = None,
        meter: Literal["loop", "full", "off"] = "loop",
        mode: Literal["live", "strict"] = "live",
        fifo_priority: int | None = None,
        lock_memory: bool = True,
        sources_max: int = 64,
        commands_max: int = 256,
        log_records: int = 4096,
        commit: bool = True,
        strict: bool = False,
        journal: QueueWriter | None = None,
        state: Any = None,
        provisioner: Provisioner | None = None,
        counters_file: CountersFile | None = None,
    ) -> None:
        self._program: Program = as_program(handler)
        self._handler_path = handler_path(handler)
        self.name: str = self._program.name if name is None else name
        self.core: int | None = core
        guard = _guard_of(self._program, guard)
        _check_sizes(sources_max, commands_max, log_records, spin_ns)
        settings = {"guard": guard, "wait": wait, "meter": meter, "mode": mode}
        #: How it was made: guard, wait, meter and mode.
        self.settings: Mapping[str, str] = settings
        self._readers = [r if isinstance(r, AddReader) else AddReader(r) for r in readers]
        self._packets = tuple(packets)
        _check_journal(journal, self._packets)
        self._output_names = OutputNames(self._program.outputs)
        given = self._output_names.of_given(outputs or {})
        self._journal = journal
        self._provisioner = provisioner
        self._own_provisioner: Provisioner | None = None
        self._counters_file = counters_file
        #: Its block of the counters file.
        self.counters_block = None if counters_file is None else self._claim_block(counters_file)
        self._core = HotCore(
            self.name,
            self._program.addresses,
            self._program.flags,
            self._initial_state(state),
            len(self._program.outputs),
            len(self._program.counters),
            callback=self._program.callable,
            core=core,
            fifo_priority=fifo_priority,
            lock_memory=lock_memory,
            strict=strict,
            spin_ns=spin_ns,
            commit=commit,
            counters_file=self._counters_place(),
            wait=wait,
            meter=meter,
            mode=mode,
            guard=guard,
            sources_max=sources_max,
            commands_max=commands_max,
            log_records=log_records,
        )
        self._told = Told(
            self._core, self.name, self._program, self._output_names, given, log_records
        )
        self._tickets = itertools.count(1)
        # Re-entrant: a logging handler may poll.
        self._lock = threading.RLock()
        self._polled_s: float | None = None
        self._warnings: tuple[str, ...] = ()
        self._failure: HotThreadFailed | None = None
        self._last: Counts | None = None
        self._phase: Literal["new", "running", "ended"] = "new"
        self._pid = os.getpid()

    # --- Start and stop ---

    def start(self) -> Self:
        """Start the thread; return this object. Blocks until its loop runs.

        Raises
        ------
        HotThreadFailed
            If the handler's start failed, or with `strict` the kernel refused something. All
            readers and writers are given back.
        Moved, Closed, Forked
            If a reader or writer is not here.
        """
        self._check_owner()
        with self._lock:
            if self._phase != "new":
                raise Closed(
                    f"hot thread '{self.name}' was started before; make a new HotThread, "
                    "and pass state=old.state to go on"
                )
            provisioner = self._provisioner
            if provisioner is None:
                provisioner = self._own_provisioner = Provisioner()
            readers = [(next(self._tickets), each.tag, each.reader) for each in self._readers]
            head = self._journal_head() if self._journal is not None else b""
            try:
                warnings, failure = self._core.start(
                    readers,
                    list(self._told.outputs.items()),
                    self._packets,
                    provisioner,
                    self._journal,
                    head,
                )
            except BaseException:
                self._close_provisioner()
                raise
            self._warnings = tuple(warnings)
            if failure is not None:
                self._close_provisioner()
                raise failed(self.name, self._program, failure)
            self._phase = "running"
            if self.counters_block is not None:
                self._unclaim.detach()
            self._told.sources = {n: each.reader for n, each in enumerate(self._readers)}
            _running.add(self)
        for warning in self._warnings:
            self._told.log.warning("%s", warning)
        return self

    def stop(self, timeout: float | None = None) -> None:
        """Stop the thread after the message it is at; give its readers and writers back.

        Blocks until the thread has ended. Nothing happens if it was not started, or is stopped
        already. Does not raise what the thread failed with: see `failure`.

        Parameters
        ----------
        timeout
            Longest time to wait, in seconds. By default as long as it takes.

        Raises
        ------
        TimeoutError
            If the handler does not return in time. The thread still stops when it does; call again.
        """
        self._check_owner()
        if self._phase_now() != "running":
            return
        self._core.ask_to_stop()
        if self._is_own_thread():
            raise BadArgument(
                f"hot thread '{self.name}' cannot wait for its own end; it was asked to stop, "
                "and does so when its handler returns"
            )
        self._wait_until_finished(timeout)
        self._finish()

    def ask_to_stop(self) -> None:
        """Ask the thread to stop after the message it is at. Does not wait; `stop` gives back."""
        self._check_owner()
        if self._phase_now() == "running":
            self._core.ask_to_stop()

    def nudge(self) -> None:
        """Wake the thread if it sleeps: it looks at everything once. Does not wait."""
        self._check_owner()
        self._core.nudge()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread ends by itself, and give everything back.

        Raises
        ------
        HotThreadFailed
            What it failed with.
        TimeoutError
            If it still runs.
        """
        self._check_owner()
        if self._phase_now() == "running":
            self._wait_until_finished(timeout)
            self._finish()
        if self._failure is not None:
            raise self._failure

    def _wait_until_finished(self, timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while not self._core.is_finished():
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(
                    f"hot thread '{self.name}' still runs after {timeout} s; "
                    "its handler has not returned"
                )
            self._drain()
            time.sleep(_NAP_S)

    def _finish(self) -> None:
        with self._lock:
            if self._phase != "running":
                return
            # First, what the thread has answered: an output that was exchanged belongs to another
            # object since.
            self._drain()
            joined = self._core.join()
            if joined is None:
                return
            self._phase = "ended"
            _running.discard(self)
            failure, lost, journal_error = joined
            self._drain()
            self._told.handed.clear()
            self._told.sources.clear()
            if lost:
                self._told.log.warning("%s commands were sent but not taken", len(lost))
            self._close_provisioner()
            if self._counters_file is not None and self.counters_block is not None:
                # The next thread that gets the block counts in it.
                self._last = Counts.of(self._core)
                self._counters_file.release(self.counters_block)
            if failure is not None:
                self._failure = failed(self.name, self._program, failure)
                self._told.log.error("%s", self._failure)
            if journal_error is not None:
                self._told.log.error("the end of the journal was not written: %s", journal_error)

    def _close_provisioner(self) -> None:
        if self._own_provisioner is not None:
            self._own_provisioner.close()
            self._own_provisioner = None

    @property
    def failure(self) -> HotThreadFailed | None:
        """What the thread failed with, once `stop` or `join` has taken it in."""
        if self._phase == "running" and self._core.is_finished():
            self._check_owner()
            self._finish()
        return self._failure

    # --- Commands ---

    def send(
        self, message: Any, *, type_id: int | None = None, timeout: float | None = None
    ) -> int:
        """Send a command; return its ticket.

        Parameters
        ----------
        message
            A message (its handler is the ``@on.command`` of its class), or an `AddReader`,
            `AddWriter`, `RemoveReader`, `RemoveWriter` or `Stop`. With `type_id` any buffer.
        type_id
            1 to 65,535, for a buffer.
        timeout
            Longest time to wait for room, in seconds. By default none.

        Raises
        ------
        ChannelFull
            If there is no room; nothing was sent.
        TooLarge
            Beyond 64 KiB.
        Closed, HotThreadFailed
            If the thread does not run.
        """
        match message:
            case AddReader():
                return self.add_reader(message.reader, tag=message.tag, timeout=timeout)
            case AddWriter(output=output, writer=writer, slot=slot):
                return self.add_writer(output, writer, slot=slot, timeout=timeout)
            case RemoveWriter(output=output, slot=slot):
                return self.remove_writer(output, slot=slot, timeout=timeout)
            case RemoveReader():
                return self.remove_reader(message.source, timeout=timeout)
            case Stop():
                return self._send(self._core.send_stop, timeout)
            case MessageBase() if type_id is None:
                number, payload = message.type_id, message.pack()
            case _ if type_id is not None:
                number, payload = type_id, bytes(message)
            case _:
                raise BadArgument(
                    f"cannot send: found={type(message).__name__} expected=a message, AddReader, "
                    "AddWriter, RemoveReader, RemoveWriter or Stop; for bytes pass type_id="
                )
        return self._send(lambda ticket: self._core.send(ticket, number, payload), timeout)

    def add_reader(self, reader: QueueReader, *, tag: int = 0, timeout: float | None = None) -> int:
        """Hand a reader over; return the ticket that `ReaderAdded` answers to.

        Parameters
        ----------
        reader
            Fully opened.
        tag
            A number of your own choice, 0 to 2**32 - 1: the handler sees it as ``info.tag``, with
            each of the reader's messages.
        timeout
            Longest time to wait for room, in seconds. By default none.

        Raises
        ------
        ChannelFull
            If there is no room; the reader stays yours.
        Moved, Closed
            If the reader is not yours, or the thread does not run.
        """
        _check_range("tag", tag, 0, (1 << 32) - 1)
        about = encode_place(reader, tag=tag) if self._journal is not None else b""
        provisioner = self._serving()

        def attempt(ticket: int) -> bool:
            self._told.handed[ticket] = reader
            sent = False
            try:
                sent = self._core.add_reader(ticket, reader, tag, provisioner, about)
            finally:
                if not sent:
                    del self._told.handed[ticket]
            return sent

        return self._send(attempt, timeout)

    def remove_reader(self, source: int, *, timeout: float | None = None) -> int:
        """Ask for a source back; return the ticket that `ReaderRemoved` answers to."""
        _check_range("source", source, 0, (1 << 32) - 1)
        return self._send(lambda ticket: self._core.remove_reader(ticket, source), timeout)

    def add_writer(
        self,
        output: str,
        writer: QueueWriter,
        *,
        slot: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Let an output write to this queue from now on; return the ticket for `WriterAdded`.

        `slot` says which one of a table of outputs. The answer gives the writer before back.
        """
        number = self._output_names.number(output, slot)
        about = encode_place(writer) if self._journal is not None else b""
        provisioner = self._serving()
        ticket = self._send(
            lambda ticket: self._core.add_writer(ticket, number, writer, provisioner, about),
            timeout,
        )
        with self._lock:
            self._told.outputs[number] = writer
        return ticket

    def remove_writer(
        self, output: str, *, slot: int | None = None, timeout: float | None = None
    ) -> int:
        """Ask for the writer of an output back; return the ticket for `WriterRemoved`.

        The output is one without a writer then: what is published there is dropped and counted. It
        is refused if there is no writer.
        """
        number = self._output_names.number(output, slot)
        return self._send(lambda ticket: self._core.remove_writer(ticket, number), timeout)

    @property
    def outputs(self) -> dict[str, QueueWriter]:
        """The writers that were handed over last, by output. Moved until `stop` gives them back.

        Those of a table of outputs are named ``reports[3]``.
        """
        with self._lock:
            names = self._program.outputs
            return {names[number]: writer for number, writer in self._told.outputs.items()}

    @property
    def packets(self) -> tuple[PacketRing, ...]:
        """The packet rings, by place. Moved while the thread runs."""
        return self._packets

    @property
    def sources(self) -> dict[int, QueueReader]:
        """The readers that the thread has, by source, as far as its answers were drained.

        They are moved: only their `name` and `path` can be asked for.
        """
        with self._lock:
            return dict(self._told.sources)

    def _send(self, attempt: Any, timeout: float | None) -> int:
        self._check_owner()
        self._check_running()
        ticket = next(self._tickets)
        if attempt(ticket):
            return ticket
        # Commands wait for room for their answers: make some.
        self._drain()
        end = time.monotonic() + (timeout or 0.0)
        while not attempt(ticket):
            if time.monotonic() >= end:
                capacity = self._core.commands_max
                raise ChannelFull(
                    f"the command channel of hot thread '{self.name}' is full: "
                    f"capacity={capacity}; send later or with a timeout, or raise commands_max",
                    capacity=capacity,
                )
            time.sleep(_NAP_S)
            self._drain()
            self._check_running()
        return ticket

    def _serving(self) -> Provisioner:
        provisioner = self._provisioner or self._own_provisioner
        if provisioner is None:
            self._check_running()
            raise Closed(f"hot thread '{self.name}' is not running; nothing was sent")
        return provisioner

    # --- What comes back ---

    def poll(self) -> list[Event]:
        """Take everything that has come back; return answers and reports of the guard. Never waits.

        Each is returned once, whoever asks. Log records go to the `logging` logger
        ``chronicle.hot.<name>``, and so do reports of the guard.
        """
        self._check_owner()
        self._polled_s = time.monotonic()
        with self._lock:
            self._drain()
            taken = list(self._told.events)
            self._told.events.clear()
        return taken

    def wait_for(self, ticket: int, timeout: float | None = None) -> Ack:
        """Wait for the answer to a command.

        Parameters
        ----------
        ticket
            That a method of this object returned.
        timeout
            Longest time to wait, in seconds. By default as long as the thread runs.

        Raises
        ------
        CommandRefused
            If the command could not be carried out.
        TimeoutError
            If there is no answer yet.
        Closed, HotThreadFailed
            If the thread ended before it took the command.
        """
        self._check_owner()
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            finished = self._core.is_finished()
            self._drain()
            ack = self._told.answers.get(ticket)
            if isinstance(ack, Refused):
                raise CommandRefused(
                    f"hot thread '{self.name}' refused ticket={ticket}: {ack.reason}",
                    ticket=ticket,
                )
            if ack is not None:
                return ack
            if finished:
                self._finish()
                if ticket not in self._told.answers:
                    self._check_running()
                    raise Closed(f"hot thread '{self.name}' ended before ticket={ticket}")
                continue
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"hot thread '{self.name}' has not answered ticket={ticket}")
            time.sleep(_NAP_S)

    def _drain(self) -> None:
        with self._lock:
            self._told.drain()

    @property
    def guard_counts(self) -> dict[tuple[str, str], int]:
        """System calls that were reported, by name and the place that they came from.

        Only the first of each is logged.
        """
        with self._lock:
            return dict(self._told.guard_counts)

    # --- What it shows ---

    @property
    def status(self) -> HotStatus:
        """The thread at this moment. Does not disturb it."""
        self._check_owner()
        words = dict(self._core.status() if self._last is None else self._last.words)
        thread_id = words.get("thread_id", 0)
        kernel = interrupts = None
        if thread_id and self._phase == "running":
            # The thread may end, and its core go offline, at any moment.
            with contextlib.suppress(ProcessLookupError):
                kernel = thread_counters(thread_id)
            if self.core is not None:
                with contextlib.suppress(LookupError):
                    interrupts = core_interrupts(self.core).total
        polled_s = self._polled_s
        return HotStatus(
            warnings=self._warnings,
            supervised=polled_s is not None and time.monotonic() - polled_s < _SUPERVISED_S,
            packets=tuple(ring.statistics() for ring in self._packets),
            kernel=kernel,
            interrupts=interrupts,
            **words,
        )

    @property
    def loop_gap(self) -> Histogram:
        """From one turn's start to the next; sleep does not count."""
        self._check_owner()
        return self._histogram("loop_gap") if self._last is None else self._last.loop_gap

    @property
    def handler_time(self) -> Histogram:
        """What calls of the handler take; with ``meter="loop"`` of one message in 64."""
        self._check_owner()
        return self._histogram("handler_time") if self._last is None else self._last.handler_time

    @property
    def counters(self) -> dict[str, int]:
        """The handler's counters."""
        self._check_owner()
        counts = self._core.counters() if self._last is None else self._last.counters
        return dict(zip(self._program.counters, counts, strict=True))

    @property
    def state(self) -> Any:
        """A copy of the handler's state: a structured record, or bytes if it has no layout.

        Exact when the thread does not run; while it does, fields may be of different moments.
        """
        self._check_owner()
        data = self._core.state()
        dtype = self._program.dtype_of_state()
        if dtype is None:
            return data
        import numpy as np

        # Not copied by NumPy: that would leave whatever was there between the fields.
        return np.frombuffer(bytearray(data), dtype=dtype, count=1)[0]

    def release_retired(self) -> int:
        """Unmap the segments that the thread has left behind; return how many.

        Unmapping interrupts every core of this process, the hot one too, for some microseconds:
        call it when that does not matter. `stop` does it anyway.
        """
        self._check_owner()
        return self._core.release_retired()

    # --- Helpers ---

    def _initial_state(self, state: Any) -> bytes:
        initial = self._program.state
        if state is None:
            return initial
        data = state.tobytes() if hasattr(state, "tobytes") else bytes(state)
        if len(data) != len(initial):
            raise BadArgument(
                f"bad state: found={len(data)} bytes expected={len(initial)}; "
                "pass a state of the same handler"
            )
        return data

    def _histogram(self, name: str) -> Histogram:
        return Histogram(*self._core.histogram(name))

    def _claim_block(self, file: CountersFile) -> int:
        block = file.claim()
        # Of a thread that never runs nobody else would give it back.
        self._unclaim = weakref.finalize(self, file.release, block)
        self._unclaim.atexit = False
        return block

    def _counters_place(self) -> tuple[str, str, int] | None:
        if self._counters_file is None or self.counters_block is None:
            return None
        return self._counters_file.place_of(self.counters_block)

    def _journal_head(self) -> bytes:
        return encode_head(
            self._program,
            thread=self.name,
            handler=self._handler_path,
            state=self._core.state(),
            readers=[(each.reader, each.tag) for each in self._readers],
            writers=self._told.outputs,
        )

    def _check_owner(self) -> None:
        if os.getpid() != self._pid:
            raise Forked(
                f"hot thread '{self.name}' runs in the process that this one was forked from; "
                "make hot threads after forking"
            )

    def _phase_now(self) -> str:
        # Under the lock: a callable may run, and ask, before `start` has returned.
        with self._lock:
            return self._phase

    def _check_running(self) -> None:
        if self._phase_now() == "running" and not self._core.is_finished():
            return
        if (failure := self.failure) is not None:
            raise failure
        state, cure = "is stopped", "make a new one"
        if self._phase == "new":
            state, cure = "was not started", "call start() first, or use it in a `with` block"
        raise Closed(f"hot thread '{self.name}' {state}; nothing was sent; {cure}")

    def _is_own_thread(self) -> bool:
        thread_id: int = self._core.status().get("thread_id", 0)
        return threading.get_native_id() == thread_id

    def __enter__(self) -> Self:
        return self.start() if self._phase == "new" else self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.stop()
        if self._failure is not None and kind is None:
            raise self._failure

    def __repr__(self) -> str:
        state = self._core.status()["state"] if os.getpid() == self._pid else "forked"
        return f"<HotThread {self.name!r} {state}>"

    def __del__(self) -> None:
        # A half-made object has no core; a forked one has no thread.
        if getattr(self, "_phase", "new") == "running" and os.getpid() == self._pid:
            with contextlib.suppress(TimeoutError):
                self.stop(_EXIT_PATIENCE_S)


def _check_range(what: str, found: object, low: int, high: int) -> None:
    if not isinstance(found, int) or isinstance(found, bool) or not low <= found <= high:
        raise BadArgument(f"bad {what}: found={found!r} expected={low} to {high}")


def _check_sizes(sources_max: int, commands_max: int, log_records: int, spin_ns: int) -> None:
    _check_range("sources_max", sources_max, 1, 1 << 20)
    _check_range("commands_max", commands_max, 1, 1 << 20)
    _check_range("log_records", log_records, 1, 1 << 24)
    _check_range("spin_ns", spin_ns, 0, 1 << 40)


def _guard_of(program: Program, asked: GuardMode | None) -> GuardMode:
    """Return how a program is guarded, if nothing or this was asked for."""
    if asked is None:
        return "off" if program.callable else "observe"
    if asked == "enforce" and program.callable:
        raise BadArgument(
            "bad guard: found='enforce' expected='observe' or 'off' for a plain callable; "
            "the interpreter makes system calls, compile the handler to enforce"
        )
    return asked


def _check_journal(journal: QueueWriter | None, packets: tuple[PacketRing, ...]) -> None:
    if packets and journal is not None:
        raise BadArgument(
            f"bad journal: found={journal!r} expected=None with packets=; a journal holds what "
            "comes from queues, so a replay would miss the packets; publish the datagrams with "
            "publish_bytes, and journal the thread that reads that queue"
        )


def _stop_all() -> None:
    """Stop every hot thread before the interpreter goes."""
    for hot in list(_running):
        if hot._pid == os.getpid():
            with contextlib.suppress(TimeoutError):
                hot.stop(_EXIT_PATIENCE_S)


atexit.register(_stop_all)
