"""The way in: a capture file of any known feed, as batches of records.

>>> import pathlib, tempfile
>>> path = pathlib.Path(tempfile.mkdtemp()) / "any-name"
>>> _ = path.write_bytes(bytes.fromhex("000c 53 0001 0002 000000000005 4f"))
>>> with import_capture(path) as capture:
...     batch = next(capture)
>>> capture.feed, capture.counts.messages_count
('itch', 1)
>>> batch.type_ids.tolist()
[33363]
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator

from chronicle.feeds.batch import Batch, Counts
from chronicle.feeds.binance import BinanceDecoder
from chronicle.feeds.catalog import HEAD_BYTES, check_feed, guess_feed, message_classes
from chronicle.feeds.iex import IexDecoder
from chronicle.feeds.itch import ItchFileDecoder
from chronicle.feeds.mold import MoldDecoder
from chronicle.feeds.pcap import PcapReader
from chronicle.feeds.source import ByteSource
from chronicle.message import MessageBase

__all__ = ["Capture", "import_capture"]


class Capture(Iterator[Batch]):
    """An open capture: iterate over it for batches, look at its counts meanwhile.

    Made by `import_capture`. Memory use does not depend on the size of the file. The file is
    closed at its end, at `close`, or at the end of a ``with`` block.

    Attributes
    ----------
    feed
        Which feed it is.
    counts
        What has been found in the batches drawn so far.
    classes
        Message classes by type id, to store with a queue.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from chronicle.feeds import import_capture
    >>> from chronicle.feeds.generate import MarketGenerator, write_pcap
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = Path(folder.name, "day.pcap")
    >>> write_pcap(file, [MarketGenerator(venue=0)], count=500)
    >>> with import_capture(file) as capture:
    ...     batches = list(capture)
    >>> capture.counts.gaps, capture.counts.truncated
    (0, 0)
    >>> folder.cleanup()
    """

    feed: str
    counts: Counts
    classes: dict[int, type[MessageBase]]

    def __init__(
        self, path: str | os.PathLike[str], feed: str | None, date: dt.date | None
    ) -> None:
        if feed is not None:
            check_feed(feed)
        self._source = ByteSource(path)
        try:
            self.feed = guess_feed(self._source.peek(HEAD_BYTES)) if feed is None else feed
            self.counts = Counts()
            self.classes = message_classes(self.feed)
            self._batches = self._decode(date)
        except BaseException:
            self._source.close()
            raise

    def _decode(self, date: dt.date | None) -> Iterator[Batch]:
        source, counts = self._source, self.counts
        if self.feed == "itch":
            return ItchFileDecoder(source, counts, date=date).batches()
        if self.feed == "binance":
            return BinanceDecoder(source, counts).batches()
        decoder = IexDecoder(counts) if self.feed == "iex" else MoldDecoder(counts)
        return decoder.batches(PcapReader(source, counts))

    @property
    def bytes_total(self) -> int:
        """Size of the file as stored."""
        return self._source.size_bytes

    @property
    def bytes_done(self) -> int:
        """How much of the stored file has been read, for a progress bar."""
        return self._source.position_bytes

    def __iter__(self) -> Capture:
        return self

    def __next__(self) -> Batch:
        try:
            return next(self._batches)
        except BaseException:
            # At the end and on errors alike: nothing more will come.
            if self._source.truncated:
                self.counts.truncated = 1
            self.close()
            raise

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._source.close()

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def import_capture(
    path: str | os.PathLike[str], *, feed: str | None = None, date: dt.date | None = None
) -> Capture:
    """Open a capture file and decode it as it is iterated over.

    Parameters
    ----------
    path
        A pcap file with IEX-TP or MoldUDP64, a daily ITCH file, or a Binance capture; plain, gzip
        or zstd.
    feed
        ``iex``, ``mold``, ``itch`` or ``binance``; guessed from the content if not given.
    date
        Trading day of an ITCH file, which does not say it; without it, timestamps count from
        midnight as if that were the epoch. Other feeds carry their own time.

    Returns
    -------
    Capture
        An iterator of `Batch`, and a context manager.

    Raises
    ------
    DecodeError
        If the file is of no known feed, or, while iterating, is damaged beyond going on. A file
        that is merely cut is not an error: see `Counts.truncated`.
    OSError
        If the file cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from chronicle.feeds import import_capture
    >>> from chronicle.feeds.generate import MarketGenerator, write_pcap
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = Path(folder.name, "day.pcap")
    >>> write_pcap(file, [MarketGenerator(venue=0)], count=500)
    >>> with import_capture(file) as capture:
    ...     batches = list(capture)
    >>> capture.feed
    'iex'
    >>> folder.cleanup()
    """
    return Capture(path, feed, date)
