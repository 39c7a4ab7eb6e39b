"""From the wire into the hands of a process: the bare read of a packet ring, and what stands on it.

A real veth pair between two network namespaces, a sender that sends one datagram every so often on
a core of its own, and a reader on another. The *floor* is a native process that reads the ring and
only touches the packets (crates/chronicle-core/benches/figures/packets.rs); what others do with the
same packets is compared with it, in turns.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Sequence
from ipaddress import IPv4Address

import chronicle
from chronicle.packet_filters import socket_filter

from benches import native
from benches.common import Run, median, pinned, quantile
from tests.net_support import Link, missing, veth

LINE = ("239.255.77.1", 10378)
#: One datagram every 100 microseconds: no reader here has two of them before it at once.
EVERY_S = 0.0001
SENDER_CORE, READER_CORE = 0, 1
#: As long as the usual packet of a market data feed.
PAYLOAD = bytes(range(256)) * 2
WARM_UP = 100


def is_available() -> bool:
    """Whether networks can be made here, and there is a compiler for the floor."""
    return native.is_available() and missing() is None


def floor(
    run: Run,
    link: Link,
    payloads: Sequence[bytes],
    *,
    line: tuple[str, int] = LINE,
    every_s: float = EVERY_S,
) -> dict[str, float]:
    """Send the payloads, and have them read by the floor; its figures, `packet_ring_read_*`."""
    program = native.program(optimized=not run.quick)
    wanted = socket_filter([(int(IPv4Address(line[0])), line[1])])
    arguments = [link.interface, f"{line[0]}:{line[1]}", wanted.hex(), str(len(payloads))]
    command = [str(program), "packets", *arguments, "--dir", str(run.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        try:
            assert reader.stdout.readline() == "ready\n"
            link.send([(*line, payload) for payload in payloads], every_s=every_s)
            answer, _ = reader.communicate(timeout=120)
        finally:
            reader.kill()
    figures: dict[str, float] = json.loads(answer)
    return figures


def python_read(link: Link, payloads: Sequence[bytes]) -> list[float]:
    """Read the same with `PacketRing.next`; nanoseconds since each one's arrival, sorted."""
    found: list[float] = []
    with chronicle.PacketRing(link.interface, [LINE]) as ring, pinned(READER_CORE):
        # In a thread that only waits for the other end's answer.
        datagrams = [(*LINE, payload) for payload in payloads]
        sender = threading.Thread(target=lambda: link.send(datagrams, every_s=EVERY_S))
        sender.start()
        while len(found) < len(payloads):
            if (datagram := ring.next()) is not None:
                found.append(chronicle.clock_ns() - datagram.timestamp_ns)
        sender.join()
        assert ring.statistics().drops == 0
    return sorted(found[WARM_UP:])


def measure(run: Run) -> dict[str, float]:
    """Measure the bare read, and the one in plain Python."""
    payloads = [PAYLOAD] * (run.size(5_000, 100) + WARM_UP)
    floors: list[dict[str, float]] = []
    plain: list[list[float]] = []
    with veth() as link:
        link.pin(SENDER_CORE)
        for _ in range(run.size(5, 1)):
            floors.append(floor(run, link, payloads))
            plain.append(python_read(link, payloads))
    names = ("p50", "p99")
    results = {
        f"packet_ring_read_{name}_median_ns": median(
            [figures[f"packet_ring_read_{name}_ns"] for figures in floors]
        )
        for name in names
    }
    results |= {
        f"packet_python_read_{name}_median_ns": median([quantile(times, q) for times in plain])
        for name, q in zip(names, (0.5, 0.99), strict=True)
    }
    results["packet_ring_read_count"] = sum(f["packet_ring_read_count"] for f in floors)
    return results
