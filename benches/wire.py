"""From the wire to a queue: a packet in the ring until its messages can be read by another process.

The feed handler (`chronicle.feeds.arbitration`) on a hot thread, under the guard, decodes the
packets of a made-up market. Two figures:

- *committed*: from the arrival of a packet until the handler has returned, when the last of its
  messages is committed: when the thread took it, by its own clock, and the time of the call, by its
  meter (which times each packet here, and so adds to it).
- *seen*: the process that sends the packets reads the queue as well. It sends one, polls until the
  last record of that packet is there, and takes the time since its arrival. That is an upper bound:
  it holds what sending has still to do once the packet is in the ring, and a poll in Python.

The floor is the bare read of the same packets (`benches.packets.floor`), in turns.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import chronicle
from chronicle.feeds.arbitration import LIVE_CLASSES, FeedHandler
from chronicle.feeds.generate import MarketGenerator
from chronicle.hot import Bytes, Info, on
from chronicle.message import MessageBase, i64

from benches.common import ROOT, Run, median, median_ratio, pin, quantile
from benches.packets import EVERY_S, LINE, READER_CORE, SENDER_CORE, WARM_UP, floor
from tests.net_support import Link, veth


@chronicle.message(150)
class Taken(MessageBase):
    """Behind the messages of a packet: when it was put into the ring, and taken from there."""

    arrived_ns: i64
    taken_ns: i64


class Timed(FeedHandler):
    """The feed handler, which says after each packet that it is done."""

    @on.datagram
    def datagram(self, data: Bytes, info: Info) -> None:
        """Take a packet of a line."""
        self.line_packet(data, info)
        self.live.publish(Taken(arrived_ns=info.timestamp_ns, taken_ns=self.now_ns))


def wire_to_queue(run: Run, link: Link, payloads: list[bytes]) -> dict[str, list[float]]:
    """Send packets to the feed handler; return nanoseconds since their arrival, sorted."""
    with run.scratch("live") as live, run.scratch("requests") as requests:
        file = run.folder / "payloads"
        file.write_bytes(pickle.dumps(payloads))
        with (
            chronicle.PacketRing(link.interface, [LINE]) as ring,
            chronicle.Queue.open_publisher(live, schema=[*LIVE_CLASSES, Taken]) as writer,
            chronicle.Queue.open_publisher(requests) as asked,
            chronicle.HotThread(
                # Nobody recovers: what is first is the beginning.
                Timed(recovery=False),
                packets=[ring],
                outputs={"live": writer, "requests": asked},
                core=READER_CORE % (os.cpu_count() or 1),
                guard="enforce",
                meter="full",
            ) as hot,
        ):
            sender = link.popen(
                [sys.executable, "-m", "benches.wire", str(file), str(live)],
                stdout=subprocess.PIPE,
                text=True,
            )
            answer, _ = sender.communicate(timeout=120)
            assert sender.returncode == 0
            hot.poll()
            assert hot.failure is None
            found = json.loads(answer)
            messages = sum(int.from_bytes(each[14:16], "little") for each in payloads)
            assert hot.counters["messages"] == messages
            assert ring.statistics().drops == 0
            # The call of each packet; idle calls are no part of it.
            call_ns = hot.handler_time.quantile(0.5)
        file.unlink()
    seen = sorted(seen_ns - arrived_ns for seen_ns, arrived_ns, _ in found[WARM_UP:])
    taken = sorted(taken_ns - arrived_ns for _, arrived_ns, taken_ns in found[WARM_UP:])
    return {"seen": seen, "taken": taken, "call": [call_ns]}


def measure(run: Run) -> dict[str, float]:
    """Measure the bare read, and the way into a queue, of the same packets."""
    count = run.size(5_000, 100) + WARM_UP
    payloads = [packet for _, packet in MarketGenerator(seed=3).packets(count * 4)][:count]
    floors: list[float] = []
    found: list[dict[str, list[float]]] = []
    with veth() as link:
        link.pin(SENDER_CORE)
        for _ in range(run.size(5, 1)):
            floors.append(floor(run, link, payloads)["packet_ring_read_p50_ns"])
            found.append(wire_to_queue(run, link, payloads))
    p50 = {
        name: [quantile(each[name], 0.5) for each in found] for name in ("seen", "taken", "call")
    }
    committed = [taken + call for taken, call in zip(p50["taken"], p50["call"], strict=True)]
    results = {f"wire_{name}_p50_median_ns": median(values) for name, values in p50.items()}
    results["wire_floor_p50_median_ns"] = median(floors)
    results["wire_committed_p50_median_ns"] = median(committed)
    results["wire_committed_over_bare_read_ratio"] = median_ratio(committed, floors)
    results["wire_seen_over_bare_read_ratio"] = median_ratio(p50["seen"], floors)
    results["wire_to_queue_count"] = float(sum(len(each["seen"]) for each in found))
    return results


def send_and_read(file: Path, live: Path) -> list[tuple[int, int, int]]:
    """Send each packet, and wait until it can be read; return when it was seen, and `Taken`."""
    pin(SENDER_CORE)
    payloads: list[bytes] = pickle.loads(file.read_bytes())
    found: list[tuple[int, int, int]] = []
    with (
        chronicle.Queue.open_subscriber(live, None, start="latest") as reader,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        read, clock = reader.next, chronicle.clock_ns
        due_s = time.monotonic()
        for payload in payloads:
            while time.monotonic() < due_s:
                pass
            due_s = time.monotonic() + EVERY_S
            udp.sendto(payload, LINE)
            while True:
                message = read()
                if message is not None and message.type_id == Taken.type_id:
                    break
            seen_ns = clock()
            taken = Taken.view(message.payload)
            found.append((seen_ns, taken.arrived_ns, taken.taken_ns))
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    print(json.dumps(send_and_read(Path(sys.argv[1]), Path(sys.argv[2]))))
