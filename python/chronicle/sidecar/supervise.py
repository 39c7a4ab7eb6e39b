"""Services that are watched over: run, restarted after a pause when they raise, stopped in order.

A `Service` is an async callable with a name and a stage. The `Supervisor` lives on one asyncio
loop and is used from that loop only; `health` may be called from any thread, since it reads plain
attributes that are replaced whole.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

__all__ = ["Backoff", "Health", "Service", "Stage", "State", "Supervisor"]

_log = logging.getLogger("chronicle.sidecar")

#: The part of its time limit that a stage of the shutdown gets at least.
_STAGE_SHARE_MIN = 0.1
#: How long an expected error is not logged again while attempt after attempt ends with it.
_SAME_AGAIN_S = 60.0


class Stage(enum.IntEnum):
    """When a service is stopped: in this order, each stage after the one before it.

    Examples
    --------
    >>> from chronicle.sidecar import Stage
    >>> Stage.INPUT < Stage.WATCH
    True
    """

    INPUT = 1
    HOT = 2
    FLUSH = 3
    MIRROR = 4
    WATCH = 5


class State(enum.StrEnum):
    """What a service is doing.

    Examples
    --------
    >>> from chronicle.sidecar import State
    >>> State.RUNNING.value
    'running'
    """

    WAITING = "waiting"
    RUNNING = "running"
    BACKOFF = "backoff"
    FAILED = "failed"
    FINISHED = "finished"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Backoff:
    """How long to wait before the next try. Without jitter: what fails can be reproduced.

    Parameters
    ----------
    first_s, factor, max_s
        The pauses are ``first_s``, ``first_s * factor``, ... and at most ``max_s``, in seconds.
    reset_after_s
        After it has worked for so long, the pauses start over.
    restarts_max
        Give up after so many restarts; ``None``: never.

    Examples
    --------
    >>> [Backoff(first_s=1.0, max_s=5.0).pause_s(attempt) for attempt in range(4)]
    [1.0, 2.0, 4.0, 5.0]
    """

    first_s: float = 0.05
    factor: float = 2.0
    max_s: float = 30.0
    reset_after_s: float = 60.0
    restarts_max: int | None = None

    def pause_s(self, attempt: int) -> float:
        """Return the pause before the restart with this number, counted from 0."""
        # The exponent is bounded, so that a service which fails for months cannot overflow it.
        return min(self.max_s, self.first_s * self.factor ** min(attempt, 64))


@dataclass(frozen=True)
class Health:
    """What is known about a service.

    Attributes
    ----------
    state
        One of `State`.
    restarts
        How often it was started again after an error.
    last_error
        Class and text of the last error; ``None`` if there was none.
    beat_age_s
        Seconds since it last showed that it works; ``None`` before that.
    detail
        What the service says about itself, for people.
    healthy
        It runs (or has finished), and does not complain.

    Examples
    --------
    >>> import chronicle
    >>> with chronicle.Sidecar() as sidecar:
    ...     @sidecar.every(0.001, name="pulse")
    ...     def pulse():
    ...         pass
    ...     health = sidecar.health()["pulse"]
    >>> health.restarts, health.last_error, health.healthy
    (0, None, True)
    """

    state: State
    restarts: int
    last_error: str | None
    beat_age_s: float | None
    detail: str
    healthy: bool


@dataclass
class Service:
    """Something that the supervisor runs.

    Parameters
    ----------
    name
        Unique within its supervisor.
    run
        Called to start it, and again after each error. It ends by returning or by cancellation.
    stage
        When it is stopped.
    finish
        Called once at the shutdown, after `run` was cancelled: what must still be done.
    backoff
        Pauses between restarts.
    restart_on_return
        Start it again when it returns, as for a connection that the peer has closed.
    expected
        Errors that are logged as one line, without a traceback.
    examine
        Asked at each `health`, from any thread: why it counts as unhealthy although it runs.

    Examples
    --------
    >>> import asyncio, chronicle
    >>> from chronicle.sidecar import Service, Stage
    >>> done = []
    >>> async def work() -> None:
    ...     done.append("work")
    >>> async def finish() -> None:
    ...     done.append("finish")
    >>> with chronicle.Sidecar() as sidecar:
    ...     service = sidecar.add_service(Service("mine", work, Stage.INPUT, finish))
    ...     while not done:
    ...         sidecar.run(asyncio.sleep(0.001)).result()
    >>> done
    ['work', 'finish']
    """

    name: str
    run: Callable[[], Awaitable[object]]
    stage: Stage = Stage.INPUT
    finish: Callable[[], Awaitable[object]] | None = None
    backoff: Backoff = field(default_factory=Backoff)
    restart_on_return: bool = False
    expected: tuple[type[BaseException], ...] = ()
    examine: Callable[[], str | None] = lambda: None

    state: State = State.WAITING
    restarts: int = 0
    errors: int = 0
    last_error: str | None = None
    #: What was last logged of an expected error, when, and how often it has come since.
    logged: tuple[str, float, int] | None = None
    detail: str = ""
    beat_at_s: float | None = None
    task: asyncio.Task[None] | None = None
    finished: bool = False

    def beat(self, detail: str | None = None) -> None:
        """Say that it works, and optionally what it does. Two stores."""
        self.beat_at_s = time.monotonic()
        if detail is not None:
            self.detail = detail

    def health(self) -> Health:
        """Return what is known about it. Any thread."""
        beat = self.beat_at_s
        complaint = self.examine()
        good = self.state in (State.RUNNING, State.FINISHED, State.STOPPED, State.WAITING)
        return Health(
            state=self.state,
            restarts=self.restarts,
            last_error=self.last_error,
            beat_age_s=None if beat is None else max(0.0, time.monotonic() - beat),
            detail=complaint or self.detail,
            healthy=good and complaint is None,
        )


class Supervisor:
    """Runs services on the loop that is running when `start` is called."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}

    def add(self, service: Service) -> None:
        """Take a service in. It is started by `start`.

        Raises
        ------
        ValueError
            If there is a service of that name that has not ended.
        """
        before = self.services.get(service.name)
        if before is not None and before.state not in (State.FINISHED, State.STOPPED):
            raise ValueError(
                f"there is a service '{service.name}' already: state={before.state}; "
                "pass another name="
            )
        # A dictionary that is replaced can be iterated by other threads while this one adds to it.
        self.services = {**self.services, service.name: service}

    def start(self, service: Service) -> None:
        """Run a service from now on."""
        service.task = asyncio.get_running_loop().create_task(
            self._supervise(service), name=service.name
        )

    async def _supervise(self, service: Service) -> None:
        attempt = 0
        loop = asyncio.get_running_loop()
        try:
            while True:
                started_s = loop.time()
                service.state = State.RUNNING
                service.beat()
                returned = await self._run_once(service)
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    # The service has swallowed it, as `wait_for` may before Python 3.12.
                    raise asyncio.CancelledError
                if returned and not service.restart_on_return:
                    service.state = State.FINISHED
                    return
                if loop.time() - started_s >= service.backoff.reset_after_s:
                    attempt = 0
                    service.logged = None
                limit = service.backoff.restarts_max
                if limit is not None and attempt >= limit:
                    service.state = State.FAILED
                    _log.critical(
                        "service '%s' has failed for good: restarts=%d last error: %s",
                        service.name,
                        service.restarts,
                        service.last_error,
                    )
                    return
                service.state = State.BACKOFF
                await asyncio.sleep(service.backoff.pause_s(attempt))
                attempt += 1
                service.restarts += 1
        except asyncio.CancelledError:
            service.state = State.STOPPED
            raise

    async def _run_once(self, service: Service) -> bool:
        """Run it until it ends; whether it ended without an error."""
        try:
            await service.run()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Somebody cancelled what the service was waiting for, not the service.
            self._note(service, asyncio.CancelledError("what the service waited for was cancelled"))
            return False
        except (Exception, SystemExit) as error:
            self._note(service, error)
            return False
        return True

    def _note(self, service: Service, error: BaseException) -> None:
        service.errors += 1
        service.last_error = f"{type(error).__name__}: {error}"
        if isinstance(error, service.expected):
            self._warn(service, service.last_error)
        else:
            _log.error("service '%s' has raised", service.name, exc_info=error)

    def _warn(self, service: Service, text: str) -> None:
        """Log an expected error: the same one, attempt after attempt, once a minute."""
        now_s = asyncio.get_running_loop().time()
        more = ""
        if service.logged is not None and service.logged[0] == text:
            _, logged_s, count = service.logged
            if now_s - logged_s < _SAME_AGAIN_S:
                service.logged = (text, logged_s, count + 1)
                return
            more = f" (and {count} times since it was last told)" if count else ""
        service.logged = (text, now_s, 0)
        _log.warning("service '%s': %s%s", service.name, text, more)

    def health(self) -> dict[str, Health]:
        """Return what is known about every service. Any thread."""
        return {name: service.health() for name, service in self.services.items()}

    async def shut_down(self, timeout_s: float, stages: Iterable[Stage] = Stage) -> list[str]:
        """Stop everything, stage after stage; return what did not finish in time.

        Must be called by a task that is none of the services. May be called on another loop than
        the one that ran the services, if that one is closed: then only `finish` is left to do.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        unfinished: list[str] = []
        for stage in stages:
            limit_s = max(end_s - loop.time(), timeout_s * _STAGE_SHARE_MIN)
            members = [s for s in self.services.values() if s.stage is stage and not s.finished]
            unfinished += await self._stop_stage(members, limit_s)
        return unfinished

    async def _stop_stage(self, members: list[Service], limit_s: float) -> list[str]:
        loop = asyncio.get_running_loop()
        ending: dict[asyncio.Task[None], Service] = {
            loop.create_task(self._end(service), name=f"end {service.name}"): service
            for service in members
        }
        if not ending:
            return []
        _, late = await asyncio.wait(ending, timeout=limit_s)
        unfinished = []
        for task, service in ending.items():
            if task in late:
                task.cancel()
                unfinished.append(f"{service.name}: not finished within {limit_s:.3g} s")
            elif not task.cancelled() and (error := task.exception()) is not None:
                _log.error("service '%s' could not finish", service.name, exc_info=error)
                unfinished.append(f"{service.name}: {type(error).__name__}: {error}")
        if late:
            # Cancelled tasks get one turn to clean up; what ignores that is left behind.
            await asyncio.wait(late, timeout=0.05)
        return unfinished

    async def _end(self, service: Service) -> None:
        task = service.task
        if task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])
        if service.finish is not None:
            await service.finish()
        service.finished = True
        if service.state in (State.WAITING, State.RUNNING, State.BACKOFF):
            service.state = State.STOPPED
