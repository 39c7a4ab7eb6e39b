"""`Sidecar`: the control plane of a process, one asyncio loop in a thread of its own.

It runs supervised services: those of this package (discovery, mirrors, ...), and the user's
coroutines, timers and sockets. It starts and stops with a ``with`` block, or is the whole program
with `serve`. What the loop does must not block for long; what may block runs in worker threads.

The order of the shutdown, and what happens when this thread dies, stand in
docs/internals/sidecar.md.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import logging
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from chronicle.errors import BadArgument, Closed, HotThreadFailed
from chronicle.sidecar import affinity
from chronicle.sidecar.loop import LoopThread
from chronicle.sidecar.supervise import Backoff, Health, Service, Stage, State, Supervisor

if TYPE_CHECKING:
    from chronicle.hot.counters import CountersFile
    from chronicle.message import MessageBase
    from chronicle.queue import Provisioner, Start, StrPath
    from chronicle.sidecar.cursors import CursorFlush
    from chronicle.sidecar.discovery import Discovery, OnChange
    from chronicle.sidecar.handover import Admit, HandOver, OnGone
    from chronicle.sidecar.heartbeats import Heartbeats
    from chronicle.sidecar.hotcare import HotCare, HotLike, OnEvent
    from chronicle.sidecar.leases import EndpointLike, Leases
    from chronicle.sidecar.metrics import Metrics
    from chronicle.sidecar.mirror import Mirror
    from chronicle.sidecar.retention import Retention
    from chronicle.sidecar.scan import Readiness
    from chronicle.sidecar.settings import Ranges, Settings, TakesCommands
    from chronicle.sidecar.sockets import Connection, Session

__all__ = ["ShutdownReport", "Sidecar"]

_log = logging.getLogger("chronicle.sidecar")

R = TypeVar("R")
HotT = TypeVar("HotT", bound="HotLike")
Fn = TypeVar("Fn", bound=Callable[[], Any])


@dataclass(frozen=True)
class ShutdownReport:
    """What a shutdown has done.

    Attributes
    ----------
    unfinished
        One line for each thing that did not finish in time, or not without an error.
    took_s
        Seconds from its begin to its end.

    Examples
    --------
    >>> import chronicle
    >>> sidecar = chronicle.Sidecar().start()
    >>> report = sidecar.stop()
    >>> report.clean, report.unfinished
    (True, ())
    """

    unfinished: tuple[str, ...]
    took_s: float

    @property
    def clean(self) -> bool:
        """Whether everything was finished."""
        return not self.unfinished


class Sidecar:
    """Runs everything that is not the hot path, in an asyncio loop in its own thread.

    Methods may be called from any thread. Services can be added before and after `start`.

    Parameters
    ----------
    backoff
        Pauses between restarts of a failed service, unless it has its own.
    shutdown_timeout_s
        How long the end of the ``with`` block, a signal, or the end of the program may wait for
        the ordered shutdown.

    Examples
    --------
    >>> import threading
    >>> ticked = threading.Event()
    >>> with Sidecar() as sidecar:
    ...     @sidecar.every(0.001)
    ...     def tick():
    ...         ticked.set()
    ...     ticked.wait(60)
    True
    >>> sidecar.alive
    False
    """

    def __init__(self, *, backoff: Backoff | None = None, shutdown_timeout_s: float = 30.0) -> None:
        if shutdown_timeout_s <= 0:
            raise BadArgument(
                f"bad shutdown_timeout_s: found={shutdown_timeout_s} expected=seconds above 0"
            )
        self.backoff = backoff or Backoff()
        self.shutdown_timeout_s = shutdown_timeout_s
        self._supervisor = Supervisor()
        # Held for the whole shutdown, which the loop works on: nothing on the loop takes it.
        self._stop_lock = threading.Lock()
        # Held for a few stores.
        self._lock = threading.Lock()
        self._loop = LoopThread(self._supervisor)
        self._report: ShutdownReport | None = None
        self._stopping = False
        self._pid = os.getpid()
        self.cares: list[HotCare] = []
        self.mirrors: list[Mirror] = []
        self._known_sources: set[Path] = set()
        self._provisioner: Provisioner | None = None
        self._closers: list[Callable[[], object]] = []
        self._hot_cores: set[int] = set()
        self._allowed_cores = os.sched_getaffinity(0)

    # --- Start and stop ---

    def start(self) -> Self:
        """Start the thread and, on it, all services that were added so far.

        Returns when the loop runs.

        Raises
        ------
        Closed
            If it was stopped: a sidecar runs once.
        """
        with self._lock:
            if self._report is not None or self._stopping:
                raise Closed("this sidecar was stopped; make a new one")
            if self._loop.started:
                return self
            self._loop.start()
            _stop_at_exit(self)
        return self

    def stop(self, timeout: float | None = None) -> ShutdownReport:
        """Stop everything in order; return what did not finish.

        Blocks until it is done, at most about one and a half times `timeout`. A second call
        returns the first one's report. Works after the sidecar's thread has died as well.

        Parameters
        ----------
        timeout
            Seconds; ``shutdown_timeout_s`` by default.

        Raises
        ------
        BadArgument
            If it is called on the sidecar's own thread, which would wait for itself.
        """
        timeout_s = self.shutdown_timeout_s if timeout is None else timeout
        if self._loop.is_current:
            raise BadArgument(
                "stop() was called on the sidecar's own thread; call request_stop() there"
            )
        with self._stop_lock:
            if self._report is not None:
                return self._report
            if self._pid != os.getpid():
                # A forked child has neither the threads nor the right to what they own.
                self._report = ShutdownReport((), 0.0)
                return self._report
            begin_s = time.monotonic()
            with self._lock:
                self._stopping = True
            unfinished = self._loop.shut_down(timeout_s)
            for close in reversed(self._closers):
                try:
                    close()
                except Exception as error:
                    _log.exception("cannot close %r", close)
                    unfinished.append(f"closing: {type(error).__name__}: {error}")
            self._report = ShutdownReport(tuple(unfinished), time.monotonic() - begin_s)
        if unfinished:
            _log.error("the shutdown is not complete: %s", "; ".join(unfinished))
        return self._report

    def request_stop(self) -> None:
        """Ask for the shutdown without waiting for it. Any thread, the sidecar's own as well.

        Under `serve` that ends the program as SIGTERM does.
        """
        threading.Thread(target=self.stop, name="chr-stop", daemon=True).start()

    def serve(self) -> ShutdownReport:
        """Be the whole program: start, run until SIGINT, SIGTERM or `request_stop`, stop in order.

        Blocks. Main thread only. The handlers of the two signals are put back afterwards. A second
        signal during the shutdown ends the process at once, with 128 plus its number.
        """
        from chronicle.sidecar.serving import serve

        return serve(self)

    @property
    def alive(self) -> bool:
        """Whether the sidecar's thread runs."""
        return self._loop.alive and self._report is None

    @property
    def died(self) -> BaseException | None:
        """What ended the sidecar's thread, if it was not `stop`."""
        return self._loop.died

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # --- The user's own ---

    def run(self, coro: Coroutine[Any, Any, R]) -> concurrent.futures.Future[R]:
        """Run a coroutine on the sidecar once; return a future of its result. Any thread.

        Raises
        ------
        Closed
            If the sidecar does not run.
        """
        try:
            return asyncio.run_coroutine_threadsafe(coro, self._running_loop())
        except (Closed, RuntimeError) as error:
            coro.close()
            raise Closed(f"the sidecar does not run: {error}") from None

    def call_soon(self, function: Callable[..., object], *args: object) -> None:
        """Call a function on the sidecar, soon. Any thread. What it raises is logged.

        Raises
        ------
        Closed
            If the sidecar does not run.
        """
        try:
            self._running_loop().call_soon_threadsafe(function, *args)
        except RuntimeError as error:
            raise Closed(f"the sidecar does not run: {error}") from None

    @overload
    def task(
        self,
        function: Fn,
        *,
        name: str | None = None,
        stage: Stage = Stage.INPUT,
        backoff: Backoff | None = None,
    ) -> Fn: ...
    @overload
    def task(
        self,
        function: None = None,
        *,
        name: str | None = None,
        stage: Stage = Stage.INPUT,
        backoff: Backoff | None = None,
    ) -> Callable[[Fn], Fn]: ...
    def task(
        self,
        function: Fn | None = None,
        *,
        name: str | None = None,
        stage: Stage = Stage.INPUT,
        backoff: Backoff | None = None,
    ) -> Fn | Callable[[Fn], Fn]:
        """Run an ``async def`` without parameters as a supervised service. A decorator.

        Restarted with backoff when it raises; done when it returns; cancelled at the shutdown,
        before the hot threads stop unless `stage` says otherwise.
        """

        def add(wanted: Fn) -> Fn:
            if not asyncio.iscoroutinefunction(wanted):
                raise BadArgument(f"bad task: found={wanted!r} expected=an async def function")
            self.add_service(Service(name or _name_of(wanted), wanted, stage), backoff=backoff)
            return wanted

        return add if function is None else add(function)

    def every(
        self,
        interval_s: float,
        *,
        name: str | None = None,
        stage: Stage = Stage.INPUT,
        backoff: Backoff | None = None,
    ) -> Callable[[Fn], Fn]:
        """Call a function (plain or ``async def``) at an interval, in seconds. A decorator.

        Ticks do not drift, and those that were missed are skipped. A tick that raises is a failure
        of the service: logged, counted, and the timer restarted after a pause.
        """
        if not interval_s > 0:
            raise BadArgument(f"bad interval_s: found={interval_s} expected=seconds above 0")

        def add(wanted: Fn) -> Fn:
            service = Service(name or _name_of(wanted), lambda: _tick(service), stage)

            async def _tick(service: Service) -> None:
                loop = asyncio.get_running_loop()
                due_s = loop.time()
                while True:
                    result = wanted()
                    if isinstance(result, Awaitable):
                        await result
                    service.beat()
                    due_s = max(due_s + interval_s, loop.time())
                    await asyncio.sleep(due_s - loop.time())

            self.add_service(service, backoff=backoff)
            return wanted

        return add

    def connect(
        self,
        host: str,
        port: int,
        on_connected: Session | None = None,
        *,
        name: str | None = None,
        connect_timeout_s: float = 10.0,
        backoff: Backoff | None = None,
        **options: Any,
    ) -> Connection:
        """Keep a TCP connection: connect, run `on_connected(reader, writer)`, and again.

        `on_connected` is the session: it ends when it returns or raises, and then the connection is
        closed and made again after a pause. Without it this is a decorator for one.

        Parameters
        ----------
        connect_timeout_s
            Longest time for making the connection, in seconds.
        options
            More arguments for `asyncio.open_connection`, for example ``ssl=True``.
        """
        from chronicle.sidecar.sockets import Connection

        connection = Connection(host, port, connect_timeout_s, options)
        service = connection.service(name or f"{host}:{port}")
        connection.begin = lambda: self.add_service(service, backoff=backoff)
        if on_connected is not None:
            connection(on_connected)
        return connection

    def watch(
        self,
        pattern: str | os.PathLike[str],
        on_change: OnChange,
        *,
        interval_s: float = 1.0,
        watch: bool = True,
        readiness: Readiness | None = None,
        name: str | None = None,
    ) -> Discovery:
        """Tell of queues that come, get ready, and go. `on_change` gets each `Change` once.

        Parameters
        ----------
        pattern
            A path whose parts may be wildcards, as in ``bus/orders/*/out``.
        interval_s
            Look at least this often, in seconds, whatever the kernel tells.
        watch
            Look when the kernel tells of changes, too: within a millisecond.
        readiness
            Tells from a path the identity of what is ready there, or ``None``: `Bus.readiness` for
            queues that their endpoints declare ready. By default a queue is ready once a writer
            has opened it.
        """
        from chronicle.sidecar.discovery import Discovery
        from chronicle.sidecar.scan import Pattern

        wanted = Pattern(pattern)
        discovery = Discovery(
            wanted, on_change, interval_s=interval_s, watch=watch, readiness=readiness
        )
        self.add_service(discovery.service(name or f"discovery {wanted.text}"))
        return discovery

    def mirror(
        self,
        queue: StrPath,
        directory: StrPath,
        *,
        register_as: str | None = None,
        interval_s: float = 0.05,
        behind_s_max: float = 10.0,
        keep_bytes: int | None = None,
        keep_age_s: float | None = None,
        name: str | None = None,
    ) -> Mirror:
        """Mirror a queue, normally one on a tmpfs, into a directory on a disk.

        `chronicle.sidecar.restore` brings it back after a reboot. At the shutdown the mirror
        catches up after the hot threads have stopped.

        Parameters
        ----------
        register_as
            Be a registered reader of that name, so that retention waits for the mirror. Without
            it nothing is ever written into the source.
        interval_s
            Pause between two turns, in seconds: with the time of a turn, the bound of what a power
            loss may take.
        behind_s_max
            Unhealthy if it is further behind.
        keep_bytes, keep_age_s
            As for `Mirror`.
        """
        from chronicle.sidecar.mirror import Mirror
        from chronicle.sidecar.mirroring import MirrorService

        mirror = Mirror(
            queue, directory, name=register_as, keep_bytes=keep_bytes, keep_age_s=keep_age_s
        )
        keeper = MirrorService(mirror, interval_s=interval_s, behind_s_max=behind_s_max)
        self.mirrors.append(mirror)
        self.add_service(keeper.service(name or f"mirror {mirror.source}"))
        return mirror

    # --- Hot threads ---

    def attach(
        self,
        thread: HotT,
        *,
        on_event: OnEvent | None = None,
        stop_on_failure: bool = False,
        start: bool = True,
        drain_s: float = 5.0,
    ) -> HotT:
        """Look after a hot thread from now on: poll it, log for it, stop it in order; return it.

        After it has stopped, the queues that it wrote are flushed. Its packet rings are looked
        after: once a second drops are summed up, and an interface that has come back is bound anew.

        Whatever comes back from it is polled here; others get it by `on_event`, or ask for the
        answer to their own command with `HotThread.wait_for`. Threads of the sidecar keep off its
        core.

        Parameters
        ----------
        on_event
            Called on the sidecar with each answer and each report of the guard, and with the
            `HotThreadFailed` if it ends by itself.
        stop_on_failure
            Shut the sidecar down if the thread ends by itself, because the program is nothing
            without it: `serve` then returns, ``thread.failure`` says why, and whoever supervises
            the process starts it anew. By default the sidecar stays, and is unhealthy.
        start
            Start it, if it was not started yet.
        drain_s
            At the shutdown: how long to wait for it to take what is there, and then for its end.

        Examples
        --------
        >>> import chronicle, tempfile
        >>> def handler(message):
        ...     raise ValueError("no such symbol")
        >>> tmp = tempfile.TemporaryDirectory()
        >>> writer = chronicle.Queue.open_publisher(f"{tmp.name}/ticks", segment_bytes=1 << 16)
        >>> reader = chronicle.Queue.open_subscriber(f"{tmp.name}/ticks", "me")
        >>> hot = chronicle.HotThread(handler, readers=[reader], wait="sleep")
        >>> sidecar = Sidecar()
        >>> _ = sidecar.attach(hot, stop_on_failure=True), writer.append(1, b"XYZ")
        >>> report = sidecar.serve()  # Until it fails; without `stop_on_failure` until a signal.
        >>> hot.failure.seq
        1
        >>> reader.close(); writer.close(); tmp.cleanup()
        """
        from chronicle.sidecar.hotcare import HotCare

        pinned = thread.core is not None
        care = HotCare(thread, drain_s=drain_s, keep_off=self._keep_off_again if pinned else None)
        if on_event is not None:
            care.listen(on_event)
        if stop_on_failure:
            care.listen(self._stop_if_failed)
        if thread.core is not None:
            self.keep_off({thread.core})
        if start and thread.status.state == "new":
            thread.start()
        self.cares.append(care)
        self.add_service(care.service(f"hot {thread.name}"))
        self.add_service(care.flush_service(f"flush {thread.name}"))
        if thread.packets:
            from chronicle.sidecar.packetcare import PacketCare

            self.add_service(PacketCare(thread.packets).service(f"packets {thread.name}"))
        return thread

    def _stop_if_failed(self, event: object) -> None:
        if isinstance(event, HotThreadFailed):
            self.request_stop()

    def discover(
        self,
        pattern: str | os.PathLike[str],
        thread: HotLike,
        *,
        name: str | None,
        start: Start = "resume",
        on_change: OnChange | None = None,
        admit: Admit | None = None,
        on_gone: OnGone | None = None,
        readiness: Readiness | None = None,
        interval_s: float = 1.0,
        watch: bool = True,
        backoff: Backoff | None = None,
    ) -> HandOver:
        """Have a hot thread read every queue that matches a pattern, for as long as it is there.

        Readers are opened, mapped, prefaulted and provisioned here, and handed over ready to read.
        What fails is tried again, with growing pauses; a queue that vanishes is taken out once it
        is read to its end; one that comes again is handed over again.

        Parameters
        ----------
        pattern
            As for `watch`.
        thread
            A hot thread; it is attached if it was not yet.
        name
            Of the readers; ``None``: unregistered, so nothing resumes and retention does not wait.
        start
            Where to begin in a queue that is read for the first time; see `Queue.open_subscriber`.
        on_change
            Told of each change, too.
        admit
            Asked with a queue's path before its reader is opened, in a worker thread: it may block,
            and for example open a writer and hand it to the hot thread first. What it raises is
            logged, stands in the service's health, and is tried again with growing pauses.
        on_gone
            Called with the path, in a worker thread, after the reader was taken back: once for each
            time that `admit` has returned, and before it is asked again for that path. What it
            raises is tried again too. Not called at the end of the hot thread or the sidecar.
        readiness
            As for `watch`. An owner that dies does not take its messages along: they are read
            before its reader is taken back, and its next life goes on behind them.
        """
        from chronicle.sidecar.discovery import Discovery
        from chronicle.sidecar.handover import HandOver
        from chronicle.sidecar.scan import Pattern

        if not any(care.thread is thread for care in self.cares):
            self.attach(thread)
        care = next(care for care in self.cares if care.thread is thread)
        wanted = Pattern(pattern)
        hand_over = HandOver(
            care,
            name=name,
            start=start,
            provisioner=lambda: self.provisioner,
            backoff=backoff or self.backoff,
            on_change=on_change,
            admit=admit,
            on_gone=on_gone,
            in_order=readiness is not None,
        )
        discovery = Discovery(
            wanted, hand_over.on_change, interval_s=interval_s, watch=watch, readiness=readiness
        )
        self.close_at_stop(hand_over.close)
        self.add_service(hand_over.service(f"discovery {wanted.text}", discovery))
        return hand_over

    def settings(
        self,
        path: StrPath,
        cls: type[MessageBase],
        thread: TakesCommands,
        *,
        ranges: Ranges | None = None,
        name: str | None = None,
    ) -> Settings:
        """Send a TOML file to a hot thread as one command, now and whenever it changes.

        A file that is not right changes nothing: every key that is wrong is told in the log, and
        the service is unhealthy until the file is right.

        Parameters
        ----------
        path
            Of the file. Its directory must be there.
        cls
            The command. The file's keys are its fields.
        thread
            A hot thread that takes this command.
        ranges
            Lowest and highest value, both allowed, by field.
        """
        from chronicle.sidecar.settings import Settings

        settings = Settings(path, cls, thread.send, ranges)
        self.add_service(settings.service(name or f"settings {settings.path}"))
        return settings

    @property
    def provisioner(self) -> Provisioner:
        """The native worker that keeps the next segments ready; made when first asked for.

        Pass it to hot threads, publishers and subscribers of this process. Closed at the very end.
        """
        with self._lock:
            if self._provisioner is None:
                from chronicle.queue import Provisioner

                self._provisioner = Provisioner()
                self.close_at_stop(self._provisioner.close)
        return self._provisioner

    def release_retired(self) -> int:
        """Unmap what hot threads have given back or left behind; return how many.

        Interrupts their cores for some microseconds. The end of a hot thread does it anyway.
        """
        return sum(care.release() for care in self.cares)

    # --- Queues ---

    def retain(
        self,
        pattern: str | os.PathLike[str],
        *,
        bytes_max: int | None = None,
        age_s_max: float | None = None,
        interval_s: float = 10.0,
        name: str | None = None,
    ) -> Retention:
        """Delete old segments of queues at an interval, by size, age, or both.

        Parameters
        ----------
        pattern
            Of the queues, or the path of one.
        bytes_max
            Per queue: the oldest go while all together take more.
        age_s_max
            They go once their newest message is older, in seconds.
        """
        from chronicle.sidecar.retention import Retention
        from chronicle.sidecar.scan import Pattern

        wanted = Pattern(pattern)
        retention = Retention(
            wanted, bytes_max=bytes_max, age_s_max=age_s_max, interval_s=interval_s
        )
        self.add_service(retention.service(name or f"retention {wanted.text}"))
        return retention

    def flush_cursors(
        self, *queues: StrPath, interval_s: float = 1.0, name: str = "cursors"
    ) -> CursorFlush:
        """Bring what readers have committed to the disk at an interval, and at the end.

        Of these queues, and of all that attached hot threads read. On a tmpfs it does nothing.
        """
        from chronicle.sidecar.cursors import CursorFlush

        fixed = [Path(queue).absolute() for queue in queues]
        flush = CursorFlush(lambda: {*fixed, *self._sources()}, interval_s=interval_s)
        self.add_service(flush.service(name))
        return flush

    def _sources(self) -> set[Path]:
        """Directories of the queues that hot threads read, or have read."""
        for care in self.cares:
            readers = care.thread.sources.values()
            self._known_sources |= {Path(reader.path).absolute() for reader in readers}
        return self._known_sources

    def heartbeat(
        self,
        queue: StrPath,
        *,
        interval_s: float = 1.0,
        works: Callable[[], bool] | HotLike | None = None,
        name: str | None = None,
    ) -> Heartbeats:
        """Write a heartbeat beside a queue for as long as its owner works.

        Parameters
        ----------
        works
            Asked before each beat; or the hot thread that writes: it works while it runs and has
            not failed. By default the sidecar itself is what works.
        """
        from chronicle.sidecar.heartbeats import Heartbeats

        if works is None:
            asked = _always
        elif callable(works):
            asked = works
        else:
            thread = works

            def asked() -> bool:
                return thread.status.state in ("running", "parked")

        beats = Heartbeats(queue, interval_s=interval_s, works=asked)
        self.add_service(beats.service(name or f"heartbeat {Path(queue)}"))
        return beats

    def serve_endpoint(
        self,
        endpoint: EndpointLike,
        *,
        works: Callable[[], str | None] | None = None,
        name: str | None = None,
    ) -> Leases:
        """Renew the lease of an endpoint of a bus while its owner works; close it at the end.

        It is closed at the very end of the shutdown, when nothing more comes from this process; of
        what is registered with `close_at_stop`, what is registered later is closed before it. So
        serve an endpoint before its writers are registered: then its next owner finds them closed.

        Parameters
        ----------
        works
            Asked on the sidecar before each renewal: why the owner does not work, or ``None``. By
            default it works while no hot thread that is attached has failed.
        """
        from chronicle.sidecar.leases import Leases

        leases = Leases(endpoint, works=works or self._failure_of_hot_threads)
        self.close_at_stop(endpoint.close)
        self.add_service(leases.service(name or f"lease {endpoint.path}"))
        return leases

    def _failure_of_hot_threads(self) -> str | None:
        failed = [care.thread for care in self.cares if care.thread.failure is not None]
        return f"hot thread '{failed[0].name}' has failed" if failed else None

    def metrics(
        self,
        port: int = 0,
        *,
        address: str = "127.0.0.1",
        queues: Iterable[str] = (),
        name: str = "metrics",
    ) -> Metrics:
        """Serve metrics for Prometheus; needs the extra `metrics`.

        Parameters
        ----------
        port
            0 for any that is free: see the result's ``port``.
        address
            Reachable from this host only by default.
        queues
            Patterns of more queues to tell of.
        """
        from chronicle.sidecar.metrics import Metrics

        metrics = Metrics(self, port=port, address=address, queues=queues)
        self.add_service(metrics.service(name))
        return metrics

    def publish_counters(
        self,
        counters: CountersFile,
        *,
        interval_s: float = 0.5,
        log: str | None = "chronicle",
        log_lines: int = 50,
        name: str = "counters",
    ) -> Service:
        """Keep the sidecar's half of a counters file up to date; the hot threads write theirs.

        Parameters
        ----------
        counters
            The file that the hot threads were made with (``counters_file=``).
        interval_s
            How often; at least 0.05.
        log
            Name of the logger whose last lines stand in the file, for ``chronicle top``; ``None``
            for no lines. What hot threads log is below ``"chronicle.hot"``.
        log_lines
            How many, 1 to 200.
        """
        from chronicle.sidecar.telling import Telling

        telling = Telling(self, counters, interval_s=interval_s, log=log, log_lines=log_lines)
        return self.add_service(telling.service(name))

    # --- Services ---

    def add_service(self, service: Service, *, backoff: Backoff | None = None) -> Service:
        """Have a service supervised; start it if the sidecar runs. Any thread."""
        service.backoff = backoff or self.backoff
        with self._lock:
            if self._stopping:
                raise Closed("this sidecar was stopped; make a new one")
            try:
                self._supervisor.add(service)
            except ValueError as error:
                raise BadArgument(str(error)) from None
            if self._loop.started:
                self.call_soon(self._supervisor.start, service)
        return service

    def health(self) -> dict[str, Health]:
        """Return the health of every service, by name. Any thread; also after the end."""
        return self._supervisor.health()

    @property
    def healthy(self) -> bool:
        """Whether the thread runs and no service complains."""
        return self.alive and all(health.healthy for health in self.health().values())

    def close_at_stop(self, close: Callable[[], object]) -> None:
        """Call this at the very end of the shutdown; the last one first."""
        self._closers.append(close)

    def keep_off(self, cores: Collection[int]) -> None:
        """Keep the sidecar's threads off these cores, besides those that it was told before."""
        self._hot_cores |= set(cores)
        affinity.keep_off(self._hot_cores, self._allowed_cores)

    def _keep_off_again(self) -> None:
        self.keep_off(())

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        loop = self._loop.running
        if self._report is not None:
            raise Closed("it was stopped")
        return loop

    def __repr__(self) -> str:
        state = "running" if self.alive else "stopped" if self._report else "new"
        failed = [name for name, h in self.health().items() if h.state is State.FAILED]
        return f"<Sidecar {state}, {len(self.health())} services, failed: {failed}>"


def _always() -> bool:
    return True


def _name_of(function: Callable[..., object]) -> str:
    return getattr(function, "__qualname__", repr(function)).replace("<locals>.", "")


def _stop_at_exit(sidecar: Sidecar) -> None:
    """Stop it when the interpreter ends, if nobody has done so before."""
    reference = weakref.ref(sidecar)

    def stop() -> None:
        found = reference()
        if found is not None:
            found.stop()

    atexit.register(stop)
    sidecar.close_at_stop(lambda: atexit.unregister(stop))
