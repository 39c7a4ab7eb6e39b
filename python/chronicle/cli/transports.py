"""Ways to get bytes from one process to another, and their one-way latency: ours and others.

All peers get the same: 64-byte payloads at one fixed rate, the sender on one core and the receiver
on another, the scheduled time of each message in its first eight bytes (so a message that waits
behind a late one counts its wait), and one clock, CLOCK_MONOTONIC. Where a peer can be polled
without waiting it is measured both ways, polling and blocking, and the better one counts.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import multiprocessing as mp
import os
import resource
import struct
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from chronicle import QueueReader, QueueWriter

PAYLOAD_BYTES = 64
RATE_PER_S = 10_000
HEAD = struct.Struct("<QQ")
BODY = struct.Struct("<QQ48x")
#: Ends a run in which a message was lost, s.
PATIENCE_S = 60

#: Sends a payload when it is due, by `now_ns`.
Send = Callable[[int, bytes], Any]
#: Gives the next payload; waits for it.
Receive = Callable[[], Any]
Pipe = Any

now_ns = time.perf_counter_ns


@dataclass(frozen=True)
class Transport:
    """One way to get bytes from one process to another.

    `make` runs in the parent and gives what both ends need; the ends run in the children.
    """

    name: str
    module: str
    make: Callable[[Path], Any]
    sender: Callable[[Any], contextlib.AbstractContextManager[Send]]
    receiver: Callable[[Any], contextlib.AbstractContextManager[Receive]]

    @property
    def is_available(self) -> bool:
        """Whether the peer is installed."""
        return importlib.util.find_spec(self.module) is not None


def _when_due(send_now: Callable[[bytes], Any]) -> Send:
    """For what is sent by one call that takes the payload and nothing else."""
    clock = now_ns

    def send(due_ns: int, payload: bytes) -> None:
        while clock() < due_ns:
            pass
        send_now(payload)

    return send


# --- chronicle ---


def _chronicle_make(folder: Path) -> str:
    import chronicle

    path = folder / "queue"
    chronicle.Queue.open_publisher(path).close()
    return str(path)


def _appends(writer: QueueWriter) -> Send:
    clock, append = now_ns, writer.append

    def send(due_ns: int, payload: bytes) -> None:
        while clock() < due_ns:
            pass
        append(1, payload)

    return send


def _polls(reader: QueueReader) -> Receive:
    next_ = reader.next

    def receive() -> memoryview:
        while (message := next_()) is None:
            pass
        return message.payload

    return receive


@contextmanager
def _chronicle_sender(path: str) -> Iterator[Send]:
    import chronicle

    with chronicle.Queue.open_publisher(path) as writer:
        yield _appends(writer)


@contextmanager
def _chronicle_receiver(path: str) -> Iterator[Receive]:
    import chronicle

    with chronicle.Queue.open_subscriber(path, "bench") as reader:
        yield _polls(reader)


# --- iceoryx2: polled, as is its way; copies by the shortest path that its Python API has ---


def _iceoryx2_service(name: str) -> Any:
    import iceoryx2 as iox2

    class Payload(ctypes.Structure):
        _fields_ = [("data", ctypes.c_uint8 * PAYLOAD_BYTES)]

    iox2.set_log_level(iox2.LogLevel.Error)
    node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
    builder = node.service_builder(iox2.ServiceName.new(name)).publish_subscribe(Payload)
    service = builder.subscriber_max_buffer_size(8_192).enable_safe_overflow(False).open_or_create()
    return node, service


def _iceoryx2_make(folder: Path) -> str:
    return f"chronicle-bench/{folder.name}/{time.time_ns()}"


@contextmanager
def _iceoryx2_sender(name: str) -> Iterator[Send]:
    _node, service = _iceoryx2_service(name)
    publisher = service.publisher_builder().create()
    clock, memmove = now_ns, ctypes.memmove

    def send(due_ns: int, payload: bytes) -> None:
        while clock() < due_ns:
            pass
        sample = publisher.loan_uninit()
        memmove(sample.payload_ptr, payload, PAYLOAD_BYTES)
        sample.assume_init().send()

    yield send


@contextmanager
def _iceoryx2_receiver(name: str) -> Iterator[Receive]:
    _node, service = _iceoryx2_service(name)
    subscriber = service.subscriber_builder().buffer_size(8_192).create()
    receive_sample, string_at = subscriber.receive, ctypes.string_at

    sample = None

    def receive() -> bytes:
        nonlocal sample
        # Gives the last one back now, and not while the next message is on its way.
        sample = None
        while (sample := receive_sample()) is None:
            pass
        return string_at(sample.payload_ptr, PAYLOAD_BYTES)

    yield receive


# --- pyzmq: PUSH and PULL over ipc ---


def _zmq_make(folder: Path) -> str:
    return f"ipc://{folder}/zmq"


@contextmanager
def _zmq_sender(address: str) -> Iterator[Send]:
    import zmq

    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.connect(address)
        yield _when_due(socket.send)


@contextmanager
def _zmq_receiver(address: str) -> Iterator[Receive]:
    import zmq

    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.bind(address)
        yield socket.recv


@contextmanager
def _zmq_poller(address: str) -> Iterator[Receive]:
    import zmq

    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        socket.bind(address)
        recv, dont_wait, again = socket.recv, zmq.DONTWAIT, zmq.Again

        def receive() -> Any:
            while True:
                try:
                    return recv(dont_wait)
                except again:
                    pass

        yield receive


# --- multiprocessing ---


def _pipe_make(_folder: Path) -> Any:
    return mp.get_context("spawn").Pipe(duplex=False)


@contextmanager
def _pipe_sender(ends: Any) -> Iterator[Send]:
    yield _when_due(ends[1].send_bytes)


@contextmanager
def _pipe_receiver(ends: Any) -> Iterator[Receive]:
    yield ends[0].recv_bytes


@contextmanager
def _pipe_poller(ends: Any) -> Iterator[Receive]:
    poll, recv_bytes = ends[0].poll, ends[0].recv_bytes

    def receive() -> Any:
        while not poll(0):
            pass
        return recv_bytes()

    yield receive


def _queue_make(_folder: Path) -> Any:
    return mp.get_context("spawn").Queue()


@contextmanager
def _queue_sender(queue: Any) -> Iterator[Send]:
    yield _when_due(queue.put)
    queue.close()
    queue.join_thread()


@contextmanager
def _queue_receiver(queue: Any) -> Iterator[Receive]:
    yield queue.get


@contextmanager
def _queue_poller(queue: Any) -> Iterator[Receive]:
    from queue import Empty

    get_nowait = queue.get_nowait

    def receive() -> Any:
        while True:
            try:
                return get_nowait()
            except Empty:
                pass

    yield receive


# --- faster-fifo: without pickling, which bytes do not need ---


def _as_is(value: Any) -> Any:
    return value


def _as_bytes(value: Any) -> bytes:
    return bytes(value)


def _fifo_make(_folder: Path) -> Any:
    import faster_fifo

    return faster_fifo.Queue(1_000_000, loads=_as_bytes, dumps=_as_is)


@contextmanager
def _fifo_sender(queue: Any) -> Iterator[Send]:
    yield _when_due(queue.put)


@contextmanager
def _fifo_receiver(queue: Any) -> Iterator[Receive]:
    yield lambda: queue.get(True, PATIENCE_S)


TRANSPORTS = (
    Transport("chronicle", "chronicle", _chronicle_make, _chronicle_sender, _chronicle_receiver),
    Transport("iceoryx2", "iceoryx2", _iceoryx2_make, _iceoryx2_sender, _iceoryx2_receiver),
    Transport("pyzmq", "zmq", _zmq_make, _zmq_sender, _zmq_receiver),
    Transport("pyzmq_polling", "zmq", _zmq_make, _zmq_sender, _zmq_poller),
    Transport("pipe", "multiprocessing", _pipe_make, _pipe_sender, _pipe_receiver),
    Transport("pipe_polling", "multiprocessing", _pipe_make, _pipe_sender, _pipe_poller),
    Transport("mp_queue", "multiprocessing", _queue_make, _queue_sender, _queue_receiver),
    Transport("mp_queue_polling", "multiprocessing", _queue_make, _queue_sender, _queue_poller),
    Transport("faster_fifo", "faster_fifo", _fifo_make, _fifo_sender, _fifo_receiver),
    Transport("faster_fifo_polling", "faster_fifo", _fifo_make, _fifo_sender, _queue_poller),
)


# --- Rolling: the library with small segments, prepared by a provisioner, for the report ---

ROLLING_SEGMENT_BYTES = 1 << 17


def _rolling_make(folder: Path) -> str:
    import chronicle

    path = folder / "queue"
    chronicle.Queue.open_publisher(path, segment_bytes=ROLLING_SEGMENT_BYTES).close()
    return str(path)


@contextmanager
def _rolling_sender(path: str) -> Iterator[Send]:
    import chronicle

    with (
        chronicle.Provisioner() as provisioner,
        chronicle.Queue.open_publisher(path, provisioner=provisioner) as writer,
    ):
        yield _appends(writer)


@contextmanager
def _rolling_receiver(path: str) -> Iterator[Receive]:
    import chronicle

    with (
        chronicle.Provisioner() as provisioner,
        chronicle.Queue.open_subscriber(path, "bench", provisioner=provisioner) as reader,
    ):
        yield _polls(reader)


ROLLING = Transport(
    "chronicle_rolling", "chronicle", _rolling_make, _rolling_sender, _rolling_receiver
)
BY_NAME = {transport.name: transport for transport in (*TRANSPORTS, ROLLING)}


# --- The two processes ---


class Recording(NamedTuple):
    """What was measured, message by message.

    Attributes
    ----------
    name
        Of the transport.
    late_ns
        From the time at which each message was due to its receipt, in order of sending.
    faults
        ``(side, message number, page faults of its thread since the message before)``.
    rolls
        Numbers of the messages whose append went into a new segment.
    """

    name: str
    late_ns: list[int]
    faults: list[tuple[str, int, int]]
    rolls: list[int]


def _pin(index: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[index % len(cores)]})


def _fault_count() -> int:
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_minflt + usage.ru_majflt


class _Faults:
    """Notes after which messages the thread had page faults, if that is wanted."""

    def __init__(self, *, watch: bool) -> None:
        self.found: list[tuple[int, int]] = []
        self._watch = watch
        self._last = _fault_count()

    def look(self, number: int) -> None:
        """Look at the kernel's count; one system call, when the message is done with."""
        if self._watch and (count := _fault_count()) != self._last:
            self.found.append((number, count - self._last))
            self._last = count


def _send_all(name: str, shared: Any, count: int, ready: Pipe, watch: bool) -> None:
    _pin(0)
    interval_ns = 1_000_000_000 // RATE_PER_S
    with BY_NAME[name].sender(shared) as send:
        ready.recv()
        faults = _Faults(watch=watch)
        due_ns = now_ns() + 20_000_000
        for number in range(count):
            # The bytes are made before they are due: what that costs is no transport's.
            send(due_ns, BODY.pack(due_ns, number))
            due_ns += interval_ns
            faults.look(number)
        ready.send(faults.found)
        # Whoever stops with messages under way must not take them along.
        ready.recv()


def _receive_all(name: str, shared: Any, count: int, ready: Pipe, watch: bool) -> None:
    _pin(1)
    late_ns = array("Q", bytes(8 * count))
    with BY_NAME[name].receiver(shared) as receive:
        ready.send(None)
        clock, unpack = now_ns, HEAD.unpack_from
        faults = _Faults(watch=watch)
        for expected in range(count):
            payload = receive()
            received_ns = clock()
            due_ns, number = unpack(payload)
            if number != expected or len(payload) != PAYLOAD_BYTES:
                raise RuntimeError(
                    f"{name}: wrong message: number={number} expected={expected} "
                    f"len={len(payload)}; this is a fault of the transport"
                )
            late_ns[expected] = received_ns - due_ns
            # Not while the next message is on its way.
            del payload
            faults.look(expected)
    ready.send((late_ns.tobytes(), faults.found))


def _take(end: Pipe, name: str) -> Any:
    try:
        if end.poll(PATIENCE_S):
            return end.recv()
    except EOFError:
        pass
    raise TimeoutError(f"{name}: messages were lost, or none came; see above what failed")


def record(name: str, folder: Path, count: int, *, watch_faults: bool = False) -> Recording:
    """Send `count` messages through one transport, between two processes.

    Parameters
    ----------
    name
        Of a transport: a key of `BY_NAME`.
    folder
        That exists; for what the transport needs, a queue or a socket.
    count
        Messages, at 10,000 a second.
    watch_faults
        Ask the kernel for the threads' page faults after each message.

    Raises
    ------
    TimeoutError
        If messages were lost.
    """
    context = mp.get_context("spawn")
    shared = BY_NAME[name].make(folder)
    go, wait = context.Pipe()
    results, report = context.Pipe(duplex=False)
    ends = ((_send_all, wait), (_receive_all, report))
    sender, receiver = (
        context.Process(target=work, args=(name, shared, count, end, watch_faults), daemon=True)
        for work, end in ends
    )
    try:
        receiver.start()
        sender.start()
        report.close()
        wait.close()
        # The receiver is there before the first message is sent; some transports lose it otherwise.
        _take(results, name)
        time.sleep(0.2)
        go.send(None)
        data, received = _take(results, name)
        sent = _take(go, name)
        go.send(None)
        sender.join()
        receiver.join()
    finally:
        for process in (sender, receiver):
            if process.is_alive():
                process.kill()
    if (sender.exitcode, receiver.exitcode) != (0, 0):
        raise ChildProcessError(
            f"{name}: exit codes {sender.exitcode}, {receiver.exitcode}; see above what failed"
        )
    late_ns = array("Q")
    late_ns.frombytes(data)
    sides = (("sender", sent), ("receiver", received))
    faults = [(side, number, many) for side, found in sides for number, many in found]
    return Recording(name, late_ns.tolist(), faults, _rolls(shared))


def _rolls(shared: Any) -> list[int]:
    """Return the messages that began a segment, from the queue's own table."""
    from chronicle.queue import inspect

    if not isinstance(shared, str) or not Path(shared, "control").exists():
        return []
    first = [segment["first_seq"] for segment in inspect(shared)["segments"]]
    # Sequence numbers start at 1, messages are counted from 0.
    return [seq - 1 for seq in first if seq > 1]
