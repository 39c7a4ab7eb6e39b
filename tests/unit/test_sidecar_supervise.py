"""Services: restarts, backoff, health, and the order in which they are stopped. In fake time."""

from __future__ import annotations

import asyncio
import itertools
import logging

import pytest
from chronicle.sidecar import Backoff, Service, Stage, State
from chronicle.sidecar.supervise import Supervisor

from tests.sidecar_support import in_fake_time


def test_a_service_that_raises_is_restarted_after_growing_pauses(caplog):
    starts = []

    async def main():
        loop = asyncio.get_running_loop()
        supervisor = Supervisor()

        async def fails():
            starts.append(loop.time())
            raise ValueError("no luck")

        service = Service("fails", fails, backoff=Backoff(first_s=1.0, factor=3.0, max_s=10.0))
        supervisor.add(service)
        supervisor.start(service)
        await asyncio.sleep(30.0)
        health = supervisor.health()["fails"]
        assert health.state is State.BACKOFF
        assert health.restarts == 4
        assert health.last_error == "ValueError: no luck"
        assert not health.healthy
        assert await supervisor.shut_down(1.0) == []
        assert supervisor.health()["fails"].state is State.STOPPED

    with caplog.at_level(logging.ERROR, logger="chronicle.sidecar"):
        in_fake_time(main)
    assert [round(b - a, 6) for a, b in itertools.pairwise(starts)] == [1, 3, 9, 10]
    # Each failure is logged with its traceback.
    assert len(caplog.records) == 5
    assert all(record.exc_info for record in caplog.records)


def test_pauses_start_over_after_a_service_has_worked_for_long(caplog):
    starts = []
    works_s = iter([0, 0, 100, 0])

    async def main():
        loop = asyncio.get_running_loop()
        supervisor = Supervisor()

        async def fails():
            starts.append(loop.time())
            await asyncio.sleep(next(works_s))
            raise OSError("gone")

        backoff = Backoff(first_s=1.0, reset_after_s=60.0)
        service = Service("fails", fails, backoff=backoff, expected=(OSError,))
        supervisor.add(service)
        supervisor.start(service)
        await asyncio.sleep(104.5)
        await supervisor.shut_down(1.0)

    with caplog.at_level(logging.WARNING, logger="chronicle.sidecar"):
        in_fake_time(main)
    assert [round(b - a, 6) for a, b in itertools.pairwise(starts)] == [1, 2, 101]
    # What is expected is one line each.
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert not any(record.exc_info for record in caplog.records)


def test_an_expected_error_that_stays_the_same_is_logged_once_a_minute(caplog):
    attempts = itertools.count()

    async def main():
        supervisor = Supervisor()

        async def fails():
            number = next(attempts)
            if number == 150:
                await asyncio.sleep(5.0)
            raise OSError("refused" if number < 140 else "reset")

        backoff = Backoff(first_s=1.0, max_s=1.0, reset_after_s=2.0)
        service = Service("fails", fails, backoff=backoff, expected=(OSError,))
        supervisor.add(service)
        supervisor.start(service)
        await asyncio.sleep(160.0)
        assert supervisor.health()["fails"].restarts > 150
        await supervisor.shut_down(1.0)

    with caplog.at_level(logging.WARNING, logger="chronicle.sidecar"):
        in_fake_time(main)
    refused = "service 'fails': OSError: refused"
    again = " (and 59 times since it was last told)"
    reset = "service 'fails': OSError: reset"
    # Another error, and one after it had worked again, are news.
    assert caplog.messages == [refused, refused + again, refused + again, reset, reset]


def test_a_service_is_given_up_after_the_restarts_that_it_has(caplog):
    async def main():
        supervisor = Supervisor()

        async def fails():
            raise SystemExit(3)

        service = Service("fails", fails, backoff=Backoff(first_s=0.1, restarts_max=2))
        supervisor.add(service)
        supervisor.start(service)
        await asyncio.sleep(60)
        health = supervisor.health()["fails"]
        assert (health.state, health.restarts) == (State.FAILED, 2)
        assert health.last_error == "SystemExit: 3"
        assert not health.healthy
        await supervisor.shut_down(1.0)
        # A failure stays visible after the end.
        assert supervisor.health()["fails"].state is State.FAILED

    with caplog.at_level(logging.CRITICAL, logger="chronicle.sidecar"):
        in_fake_time(main)
    assert "failed for good" in caplog.text


def test_a_service_that_returns_is_finished_or_runs_again_if_it_wants():
    runs = {"once": 0, "again": 0}

    async def main():
        supervisor = Supervisor()

        async def once():
            runs["once"] += 1

        async def again():
            runs["again"] += 1

        for service in (
            Service("once", once),
            Service("again", again, restart_on_return=True, backoff=Backoff(first_s=1, factor=1)),
        ):
            supervisor.add(service)
            supervisor.start(service)
        await asyncio.sleep(4.5)
        assert supervisor.health()["once"].state is State.FINISHED
        # The name of a finished service is free again.
        supervisor.add(Service("once", once))
        await supervisor.shut_down(1.0)

    in_fake_time(main)
    assert runs == {"once": 1, "again": 5}


def test_a_name_is_taken_while_its_service_lives():
    async def main():
        supervisor = Supervisor()
        supervisor.add(Service("x", asyncio.Event().wait))
        with pytest.raises(ValueError, match="pass another name="):
            supervisor.add(Service("x", asyncio.Event().wait))

    in_fake_time(main)


def test_a_cancelled_inner_task_is_a_failure_and_not_the_end(caplog):
    async def main():
        supervisor = Supervisor()

        async def awaits_what_is_cancelled():
            inner = asyncio.create_task(asyncio.sleep(1000))
            asyncio.get_running_loop().call_soon(inner.cancel)
            await inner

        service = Service("x", awaits_what_is_cancelled, backoff=Backoff(first_s=1.0))
        supervisor.add(service)
        supervisor.start(service)
        await asyncio.sleep(1.5)
        assert supervisor.health()["x"].restarts == 1
        await supervisor.shut_down(1.0)
        assert supervisor.health()["x"].state is State.STOPPED

    with caplog.at_level(logging.ERROR, logger="chronicle.sidecar"):
        in_fake_time(main)


def test_stages_stop_in_order_each_after_the_one_before_it_has_finished():
    order = []

    async def main():
        supervisor = Supervisor()

        def service(name, stage):
            async def run():
                try:
                    await asyncio.Event().wait()
                finally:
                    order.append(f"cancel {name}")

            async def finish():
                await asyncio.sleep(0.5)
                order.append(f"finish {name}")

            return Service(name, run, stage, finish)

        for name, stage in (
            ("metrics", Stage.WATCH),
            ("mirror", Stage.MIRROR),
            ("hot", Stage.HOT),
            ("cursors", Stage.FLUSH),
            ("discovery", Stage.INPUT),
        ):
            made = service(name, stage)
            supervisor.add(made)
            supervisor.start(made)
        await asyncio.sleep(1)
        assert await supervisor.shut_down(10.0) == []

    in_fake_time(main)
    names = ["discovery", "hot", "cursors", "mirror", "metrics"]
    assert order == [f"{what} {name}" for name in names for what in ("cancel", "finish")]


def test_what_does_not_finish_is_named_and_the_stages_behind_it_still_get_their_share(caplog):
    done = []

    async def main():
        supervisor = Supervisor()

        async def hangs():
            await asyncio.Event().wait()

        async def stubborn():
            while "let go" not in done:
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    done.append("ignored a cancellation")

        async def breaks():
            raise OSError("disk on fire")

        async def works():
            done.append("works")

        for made in (
            Service("a", hangs, Stage.HOT, hangs),
            Service("b", stubborn, Stage.HOT),
            Service("c", hangs, Stage.FLUSH, breaks),
            Service("d", hangs, Stage.MIRROR, works),
        ):
            supervisor.add(made)
            supervisor.start(made)
        await asyncio.sleep(1)
        start_s = asyncio.get_running_loop().time()
        unfinished = await supervisor.shut_down(10.0)
        assert unfinished == [
            "a: not finished within 10 s",
            "b: not finished within 10 s",
            "c: OSError: disk on fire",
        ]
        assert asyncio.get_running_loop().time() - start_s < 10.5  # in fake time
        left_behind = supervisor.services["b"].task
        assert left_behind is not None
        assert not left_behind.done()
        done.append("let go")
        left_behind.cancel()
        await asyncio.wait([left_behind])

    with caplog.at_level(logging.ERROR, logger="chronicle.sidecar"):
        in_fake_time(main)
    assert "works" in done
    assert "ignored a cancellation" in done
