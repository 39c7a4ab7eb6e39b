"""Market data feeds: captures and packets to typed messages.

Layout of this package, from the bytes up:

- `source`: plain and compressed files.
- `pcap`: capture files to UDP payloads.
- `blocks`, `wire`, `packets`, `batch`: what the packet feeds share: finding messages, filling
  typed records a column at a time, putting them in order.
- `continuity`: gaps, restarts and duplicates of sequenced streams.
- `iex`, `mold`, `itch`, `binance` (with `decimals`): one feed each; the message classes are here.
- `type_ids`, `catalog`: the number space, the table of all classes, recognizing a file.
- `capture`: `import_capture`, which puts it all together.
- `hot_iex`, `hot_mold`: the packet feeds for handlers, with the same tables.
- `arbitration`, `recovery`: the lines of a feed become one queue, on a hot thread; what none of
  them brought comes over TCP, by the sidecar.
- `stream`: where a queue of feed messages stands in its feed.
- `books`, `snapshot`: order books in a handler's state, and how late joiners come by them.
- `generate`: a made-up market, for demos and tests.

Importing this package imports NumPy.
"""

from chronicle.feeds.batch import Batch, Counts
from chronicle.feeds.capture import Capture, import_capture
from chronicle.feeds.catalog import guess_feed, message_classes, type_name

__all__ = [
    "Batch",
    "Capture",
    "Counts",
    "guess_feed",
    "import_capture",
    "message_classes",
    "type_name",
]
