"""`channel`, its commands, and the loop of the design that lives on them."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import chronicle
import pytest
from chronicle import AddReader, RemoveReader, Stop

from tests.queue_support import fill, payloads, publisher, running, subscriber


def test_objects_come_out_in_the_order_they_went_in():
    tx, rx = chronicle.channel(8)
    things = [1, "two", None.__class__, {"four": 4}]
    for thing in things:
        tx.send(thing)
    assert [rx.try_recv() for _ in things] == things
    assert rx.try_recv() is None


def test_the_same_object_comes_out():
    tx, rx = chronicle.channel(1)
    thing = object()
    tx.send(thing)
    assert rx.try_recv() is thing


def test_a_channel_knows_how_much_it_holds():
    tx, rx = chronicle.channel(3)
    assert tx.capacity == rx.capacity == 3
    assert len(tx) == len(rx) == 0
    tx.send(1)
    tx.send(2)
    assert len(tx) == len(rx) == 2


def test_a_full_channel_is_an_error_at_once_and_loses_nothing():
    tx, rx = chronicle.channel(2)
    tx.send(1)
    tx.send(2)
    with pytest.raises(chronicle.ChannelFull) as caught:
        tx.send(3)
    assert caught.value.capacity == 2
    assert caught.value.category == "warn"
    with pytest.raises(chronicle.ChannelFull):
        tx.send(3, timeout=0.001)
    assert rx.try_recv() == 1
    tx.send(4)
    assert [rx.try_recv(), rx.try_recv(), rx.try_recv()] == [2, 4, None]


def test_a_sender_may_wait_for_room():
    tx, rx = chronicle.channel(1)
    tx.send("first")
    received: list[Any] = []

    def receive() -> None:
        while len(received) < 2:
            if (item := rx.try_recv()) is not None:
                received.append(item)
            time.sleep(0)

    with running(receive):
        tx.send("second", timeout=float("inf"))
    assert received == ["first", "second"]


@pytest.mark.parametrize("capacity", [0, (1 << 24) + 1])
def test_a_capacity_that_cannot_work_is_refused(capacity: int):
    with pytest.raises(chronicle.BadArgument, match="capacity"):
        chronicle.channel(capacity)


def test_sending_to_nobody_is_an_error():
    tx, rx = chronicle.channel(4)
    tx.send(1)
    del rx
    gc.collect()
    with pytest.raises(chronicle.Closed, match="receiver"):
        tx.send(2)


def test_what_was_sent_arrives_after_the_sender_is_gone():
    tx, rx = chronicle.channel(4)
    tx.send(1)
    del tx
    gc.collect()
    assert rx.try_recv() == 1
    assert rx.try_recv() is None


def test_what_nobody_received_is_freed_with_the_channel():
    class Thing:
        pass

    tx, rx = chronicle.channel(4)
    thing = Thing()
    gone = weakref.ref(thing)
    tx.send(thing)
    del thing
    gc.collect()
    assert gone() is not None
    del tx, rx
    gc.collect()
    assert gone() is None


def test_many_senders_and_receivers_lose_and_double_nothing():
    senders, each = 4, 1_000
    tx, rx = chronicle.channel(16)
    received: list[list[int]] = [[], []]
    done = threading.Event()

    def send(number: int) -> None:
        for n in range(each):
            tx.send(number * each + n, timeout=60)

    def receive(mine: list[int]) -> None:
        while not (done.is_set() and len(rx) == 0):
            if (item := rx.try_recv()) is not None:
                mine.append(item)
            else:
                time.sleep(0)  # Lets go of the interpreter lock.

    receivers = [threading.Thread(target=receive, args=(mine,)) for mine in received]
    threads = [threading.Thread(target=send, args=(number,)) for number in range(senders)]
    for thread in receivers + threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    for thread in receivers:
        thread.join()
    assert sorted(received[0] + received[1]) == list(range(senders * each))
    for mine in received:
        for number in range(senders):
            of_one = [n for n in mine if n // each == number]
            assert of_one == sorted(of_one)


def test_commands_are_plain_data():
    assert Stop() == Stop()
    assert RemoveReader(3) == RemoveReader(source=3)
    with pytest.raises(AttributeError):
        RemoveReader(3).source = 4  # type: ignore[misc]


def test_the_reference_loop_of_the_design_runs_as_written(folder: Path):
    class Pause:
        """Stands in for the module: what the sidecar's pause is for is not tested here."""

        @staticmethod
        def sleep(seconds: float) -> None:
            assert seconds == 1
            if len(processed) == 12:
                tx.send(Stop())
                sidecar_done.set()

    time = Pause()
    sidecar_done = threading.Event()
    processed: list[tuple[int | None, bytes]] = []
    process = lambda message: processed.append((message.source, bytes(message.payload)))  # noqa: E731
    to_open = [folder / "a", folder / "b", folder / "c"]
    expected: list[bytes] = []
    for path in to_open:
        with publisher(path) as writer:
            expected += fill(writer, 4)

    def try_open_new_stream() -> chronicle.QueueReader | None:
        return subscriber(to_open.pop(), "hot") if to_open else None

    # From here on as in the design, but that the sidecar sees `running` through its own flag.
    tx, rx = chronicle.channel(16)

    def sidecar() -> None:
        while not sidecar_done.is_set():
            if (reader := try_open_new_stream()) is not None:
                tx.send(AddReader(reader))
            time.sleep(1)

    with running_sidecar(sidecar):
        fanin = chronicle.FanInReader()
        running = True
        while running:
            while (command := rx.try_recv()) is not None:
                match command:
                    case AddReader(reader):
                        fanin.add_reader(reader)
                    case Stop():
                        running = False
            fanin.wait(timeout=0.1)
            while (message := fanin.next()) is not None:
                process(message)
    assert sorted(payload for _, payload in processed) == sorted(expected)
    assert {source for source, _ in processed} == {0, 1, 2}


running_sidecar = running


def test_a_reader_survives_its_way_through_a_channel(path: Path):
    tx, rx = chronicle.channel(1)
    with publisher(path) as writer:
        made = fill(writer, 3)
        reader = subscriber(path)
        reader.next()
        tx.send(AddReader(reader))
        del reader
        gc.collect()
        match rx.try_recv():
            case AddReader(moved):
                with moved:
                    assert payloads(moved) == made[1:]
            case other:
                pytest.fail(f"{other} came out")
