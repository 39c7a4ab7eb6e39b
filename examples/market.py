"""A market for trying things out: quotes of one symbol, at random, as a feed would publish them.

    python examples/market.py BUS --venue sim --symbol ZXIET --rate 200

It stands where a feed handler would (`streams/<venue>/live`), and may be killed like one: the next
life goes on behind the last message. What a real feed needs is in `feed_handler.py`.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

from chronicle import Queue, Sidecar
from chronicle.bus import Bus
from chronicle.feeds.iex import QuoteUpdate

TICK = 100  # a cent, in the feed's ten thousandths of a dollar


def main() -> None:
    """Publish until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(description="Publish random quotes of one symbol.")
    parser.add_argument("bus", type=Path)
    parser.add_argument("--venue", default="sim")
    parser.add_argument("--symbol", default="ZXIET")
    parser.add_argument("--rate", type=float, default=200.0, help="quotes per second")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    bus = Bus(options.bus)
    sidecar = Sidecar()
    endpoint = bus.open_endpoint(f"streams/{options.venue}")
    sidecar.serve_endpoint(endpoint)
    live = Queue.open_publisher(
        endpoint.path / "live", schema=[QuoteUpdate], provisioner=sidecar.provisioner
    )
    sidecar.close_at_stop(live.close)
    chance = random.Random(options.seed * 1_000_003 + live.next_seq)
    middle = 1_000 * TICK

    @sidecar.every(1.0 / options.rate)
    def quote() -> None:
        nonlocal middle
        middle = max(100 * TICK, middle + chance.choice((-TICK, 0, TICK)))
        live.publish(
            QuoteUpdate(
                time_ns=time.time_ns(),
                symbol=options.symbol.encode(),
                bid_price=middle - TICK,
                ask_price=middle + TICK,
                bid_size=chance.choice((100, 300, 1_000)),
                ask_size=chance.choice((100, 300, 1_000)),
                flags=0,
            )
        )

    endpoint.ready(["live"])
    sidecar.serve()


if __name__ == "__main__":
    main()
