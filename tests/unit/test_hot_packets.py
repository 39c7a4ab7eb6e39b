"""Packet rings with a hot thread: who has them, what a handler gets, what happens when it fails."""

from __future__ import annotations

import logging
import re
import struct
import threading
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import chronicle
import numpy as np
import pytest
from chronicle import HotThread, NativeHandler, PacketRing
from chronicle.hot import Bytes, Info, Output
from chronicle.message import u64
from chronicle.sidecar.packetcare import PacketCare

from tests import kernel_trace
from tests.kernel_trace import KernelTrace
from tests.native_support import compiled
from tests.net_support import Link, missing, veth
from tests.packet_frames import frame
from tests.queue_support import fill, publisher, subscriber
from tests.sidecar_support import eventually

MISSING = missing()
pytestmark = [
    pytest.mark.needs_root,
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]

A = ("239.215.21.4", 10378)
B = ("239.215.21.132", 10378)

#: Adds up what it is given, and what about it could be wrong.
SOURCE = r"""
#include <stdint.h>

typedef struct { const uint8_t *payload; uint32_t len; uint16_t type_id, kind;
                 uint32_t source, tag; uint64_t sequence, timestamp_ns; } message_t;
typedef struct { uint32_t abi, flags; void *state; uint64_t now_ns; uint64_t *counters;
                 const void *fail_info; int64_t fail_code; } context_t;
typedef struct { uint64_t datagrams, bytes, sum, out_of_order, line_sum, source_sum, last_ns,
                          other; } state_t;

int32_t on_message(context_t *c, const message_t *m) {
    state_t *s = c->state;
    if (m->kind != 8) { s->other++; return 0; }
    s->datagrams++;
    s->bytes += m->len;
    for (uint32_t i = 0; i < m->len; i++) s->sum += m->payload[i];
    if (m->source == 0 && m->timestamp_ns < s->last_ns) s->out_of_order++;
    if (m->source == 0) s->last_ns = m->timestamp_ns;
    s->line_sum += m->type_id;
    s->source_sum += m->source;
    return 0;
}
"""
STATE = np.dtype(
    [(name, "<u8") for name in ("datagrams", "bytes", "sum", "out_of_order", "line_sum",
                                "source_sum", "last_ns", "other")]
)  # fmt: skip


def summing() -> NativeHandler:
    return NativeHandler(compiled(SOURCE).on_message, state=np.zeros(1, STATE), name="summing")


def wait_until_all(hot: HotThread, count: int) -> None:
    eventually(lambda: hot.status.datagrams == count, f"{count} datagrams")


def parked(hot: HotThread, times: int) -> bool:
    return hot.status.parks >= times


def test_a_handler_gets_every_datagram_of_every_ring(link: Link):
    with PacketRing(link.interface, [A, B]) as one, PacketRing(link.interface, [B]) as two:
        with HotThread(summing(), packets=[one, two], wait="hybrid") as hot:
            payloads = [bytes([n % 256]) * (n % 300) for n in range(2000)]
            link.send([(*(A, B)[n % 2], payload) for n, payload in enumerate(payloads)])
            wait_until_all(hot, 3000)
            status = hot.status
        state = hot.state
        of_b = payloads[1::2]
        assert state["datagrams"] == 3000
        assert state["bytes"] == sum(map(len, payloads + of_b))
        assert state["sum"] == sum(map(sum, payloads + of_b))
        assert (state["line_sum"], state["source_sum"], state["other"]) == (1000, 1000, 0)
        assert state["out_of_order"] == 0
        assert [counts.datagrams for counts in status.packets] == [2000, 1000]
        assert status.messages == 0


class Reader(chronicle.Handler):
    """Adds up what it finds in the bytes, in the order in which it comes."""

    numbers: u64
    first: u64
    lines: u64
    sources: u64
    late: u64
    sizes: u64
    last_seq: u64
    out: Output

    @chronicle.on.datagram
    def packet(self, data: Bytes, info: Info) -> None:
        if info.seq != self.last_seq + 1:
            self.late += 1
        self.last_seq = info.seq
        self.lines += info.line
        self.sources += info.source
        self.sizes += len(data)
        if len(data) >= 8:
            self.numbers += data.u32(0)
            self.first += data.u16_be(4)
        self.out.publish_bytes(7, data)


def test_a_compiled_handler_reads_datagrams_in_place(link: Link, path: Path, backend: Any):
    payloads = [struct.pack("<IHH", n, n, 0) + bytes(n % 500) for n in range(1000)]
    with (
        publisher(path) as writer,
        PacketRing(link.interface, [A, B], backend=backend) as ring,
    ):
        hot = HotThread(
            Reader(), packets=[ring], outputs={"out": writer}, wait="hybrid", guard="enforce"
        )
        with hot:
            link.send([(*(A, B)[n % 2], payload) for n, payload in enumerate(payloads)])
            wait_until_all(hot, 1000)
        state = hot.state
    swapped = [struct.unpack(">H", struct.pack("<H", n))[0] for n in range(1000)]
    assert state["numbers"] == sum(range(1000))
    assert state["first"] == sum(swapped)
    assert (state["lines"], state["sources"], state["late"]) == (500, 0, 0)
    assert state["sizes"] == sum(map(len, payloads))
    with subscriber(path) as reader:
        assert [bytes(message.payload) for message in reader] == payloads


def test_a_callable_gets_datagram_objects_beside_messages(link: Link, path: Path):
    with publisher(path) as writer, PacketRing(link.interface, [A, B]) as ring:
        fill(writer, 3)
        seen: list[Any] = []
        reader = subscriber(path)
        with HotThread(seen.append, readers=[reader], packets=[ring], wait="sleep") as hot:
            link.send([(*B, b"packet"), (*A, b"")])
            eventually(lambda: len(seen) == 5, "everything")
            assert hot.status.messages == 3
        datagrams = [item for item in seen if isinstance(item, chronicle.Datagram)]
        assert [(d.line, d.payload, d.number, d.source) for d in datagrams] == [
            (1, b"packet", 1, 0),
            (0, b"", 2, 0),
        ]
        assert [m.seq for m in seen if isinstance(m, chronicle.Message)] == [1, 2, 3]
        reader.close()


def test_a_ring_is_moved_while_the_thread_runs_and_given_back_at_the_end(link: Link):
    with PacketRing(link.interface, [A], name="mine") as ring:
        hot = HotThread(summing(), packets=[ring], wait="sleep", name="owner")
        link.send([(*A, b"before")])
        datagram = ring.next()
        assert datagram is not None
        with hot:
            assert hot.packets == (ring,)
            with pytest.raises(chronicle.Moved, match="'owner'"):
                ring.next()
            link.send([(*A, b"during")])
            wait_until_all(hot, 1)
            # What needs the socket works meanwhile.
            assert ring.look() == "up"
            assert ring.statistics().datagrams == 2
            ring.close()
            link.send([(*A, b"still open: it is the thread's")])
            wait_until_all(hot, 2)
        link.send([(*A, b"after")])
        after = ring.next()
        assert after is not None
        assert (after.payload, after.number) == (b"after", 4)


def test_a_thread_that_could_not_start_gives_every_ring_back(link: Link):
    def refuse(_: object) -> None:
        raise AssertionError("never called")

    with PacketRing(link.interface, [A]) as one, PacketRing(link.interface, [A]) as two:
        two.close()
        with pytest.raises(chronicle.Closed):
            HotThread(refuse, packets=[one, two], wait="sleep").start()
        assert one.next() is None
        with pytest.raises(chronicle.Moved):
            HotThread(refuse, packets=[one, one], wait="sleep").start()
        assert one.next() is None
        with HotThread(refuse, packets=[one], wait="sleep"):
            pass
        assert one.next() is None


def test_a_datagram_that_a_handler_failed_on_is_still_the_next_one(link: Link, backend: Any):
    def handler(datagram: chronicle.Datagram) -> None:
        if datagram.payload == b"bad":
            raise ValueError("no such packet")

    with PacketRing(link.interface, [A, B], backend=backend) as ring:
        link.send([(*A, b"good"), (*B, b"bad"), (*A, b"more")])
        hot = HotThread(handler, packets=[ring], wait="sleep").start()
        with pytest.raises(
            chronicle.HotThreadFailed, match="source=0 seq=2 type_id=1: ValueError: no such packet"
        ):
            hot.join(60)
        left = [ring.next(), ring.next()]
        assert [(d.number, d.payload) for d in left if d] == [(2, b"bad"), (3, b"more")]


def test_bad_frames_are_work_too_and_do_not_hold_up_what_follows(link: Link):
    broken = bytearray(frame(A, b"broken"))
    broken[-1] ^= 1
    with PacketRing(link.interface, [A]) as ring:
        with HotThread(summing(), packets=[ring], wait="sleep") as hot:
            link.send_frames([bytes(broken)] * 500 + [frame(A, b"good")])
            wait_until_all(hot, 1)
            assert hot.status.packets[0].bad_checksums == 500


def test_a_journal_and_packets_are_refused_together(link: Link, path: Path):
    with publisher(path) as journal, PacketRing(link.interface, [A]) as ring:
        with pytest.raises(
            chronicle.BadArgument, match=r"a replay would miss the packets.*publish"
        ):
            HotThread(summing(), packets=[ring], journal=journal)
        assert ring.next() is None


def test_a_guarded_thread_makes_no_system_call_while_packets_flow(link: Link, backend: Any):
    if (reason := kernel_trace.missing()) is not None:
        pytest.skip(f"no kernel tracing: {reason}")
    with PacketRing(link.interface, [A, B], backend=backend) as ring:
        with HotThread(summing(), packets=[ring], wait="spin", guard="enforce") as hot:
            link.send([(*A, b"first")])
            wait_until_all(hot, 1)
            with KernelTrace(hot.status.thread_id) as trace:
                link.send([(*(A, B)[n % 2], bytes(n % 1400)) for n in range(3000)])
                eventually(lambda: ring.statistics().datagrams == 3001, "all datagrams")
            status = hot.status
        assert (trace.system_calls, trace.page_faults, trace.heap_calls) == ({}, {}, {})
        assert (status.guard_seen, status.allocations) == (0, 0)
        assert hot.state["datagrams"] == 3001


@pytest.mark.parametrize("wait", ["hybrid", "sleep"])
def test_a_thread_that_sleeps_wakes_for_packets_under_the_guard(link: Link, wait: Any):
    with PacketRing(link.interface, [A]) as ring:
        hot = HotThread(summing(), packets=[ring], wait=wait, spin_ns=1000, guard="enforce")
        with hot:
            for n in range(1, 20):
                more = hot.status.parks + 1
                eventually(partial(parked, hot, more), "it to sleep")
                link.send([(*A, b"x")])
                wait_until_all(hot, n)
        assert hot.failure is None


# --- The sidecar ---


def test_the_sidecar_mends_the_ring_while_the_hot_thread_runs(
    backend: Any, caplog: pytest.LogCaptureFixture
):
    with (
        veth() as link,
        PacketRing(link.interface, [A], backend=backend, name="mended") as ring,
    ):
        hot = HotThread(summing(), packets=[ring], wait="sleep", name="mended", guard="enforce")
        with chronicle.Sidecar() as sidecar, caplog.at_level(logging.INFO, "chronicle.sidecar"):
            sidecar.attach(hot)
            link.send([(*A, b"one")])
            wait_until_all(hot, 1)
            link.remove()
            service = "packets mended"
            eventually(lambda: not sidecar.health()[service].healthy, "the service to notice")
            assert "is absent" in sidecar.health()[service].detail
            link.make()
            eventually(lambda: hot.status.packets[0].rebinds == 1, "the ring to be bound again")
            eventually(lambda: sidecar.health()[service].healthy, "the service to be content")
            link.send([(*A, b"two")])
            wait_until_all(hot, 2)
        assert hot.failure is None
        assert ring.statistics().state == "up"
    texts = [record.getMessage() for record in caplog.records]
    assert f"packet ring 'mended': interface '{link.interface}' is absent" in texts
    assert f"packet ring 'mended': interface '{link.interface}' is up" in texts


def test_what_the_kernel_dropped_is_logged_once_and_in_the_metrics(
    link: Link, caplog: pytest.LogCaptureFixture
):
    go = threading.Event()
    seen: list[object] = []

    def handler(datagram: chronicle.Datagram) -> None:
        go.wait(60)
        seen.append(datagram)

    def told() -> int:
        """The drops in all lines of the log: frames may arrive in more than one of its looks."""
        line = re.compile(r"packet ring 'full' was full: the kernel dropped (\d+) frames")
        texts = [record.getMessage() for record in caplog.records]
        return sum(int(found[1]) for text in texts if (found := line.match(text)))

    with PacketRing(link.interface, [A], frames=16, name="full") as ring:
        hot = HotThread(handler, packets=[ring], wait="sleep", name="slow")
        with chronicle.Sidecar() as sidecar:
            sidecar.attach(hot)
            metrics = sidecar.metrics(port=0)
            link.send([(*A, b"x")] * 100)
            eventually(lambda: told() == 84, "the log")
            go.set()
            eventually(lambda: len(seen) == 16, "what was kept")
            url = f"http://127.0.0.1:{metrics.port}/metrics"
            with urllib.request.urlopen(url) as answer:
                text = answer.read().decode()
    labels = '{ring="full",thread="slow"}'
    for name, value in (
        ("drops", 84),
        ("datagrams", 16),
        ("bytes", 16),
        ("rebinds", 0),
        ("truncated", 0),
    ):
        assert f"chronicle_packets_{name}_total{labels} {value}.0" in text
    assert f"chronicle_packets_up{labels} 1.0" in text
    assert told() == 84


class FakeRing:
    """A ring whose interface is as the test says."""

    name = interface = "fake"

    def __init__(self) -> None:
        self.state = "up"
        self.error: Exception | None = None
        self.drops = 0

    def look(self) -> str:
        if self.error is not None:
            raise self.error
        return self.state

    def statistics(self) -> chronicle.PacketStatistics:
        return chronicle.PacketStatistics(5, 0, 0, 0, 0, 0, 0, self.drops, 0, self.state)


def test_a_ring_that_cannot_be_mended_does_not_keep_the_others_from_it():
    first, second = FakeRing(), FakeRing()
    care = PacketCare([first, second])  # type: ignore[list-item]
    service = care.service("packets")
    first.error = OSError("no")
    second.state = "down"
    with pytest.raises(OSError, match="no"):
        care.look()
    assert service.health().detail == "interface 'fake' is down"
    first.error = None
    second.state = "up"
    second.drops = 7
    care.look()
    assert service.health().detail == "5 datagrams, 0 dropped; 5 datagrams, 7 dropped"
    first.error = chronicle.Closed("closed")
    care.look()
    assert service.health().healthy
