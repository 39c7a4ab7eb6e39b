"""A capture goes into a queue in one process and comes out of it, exact, in others meanwhile."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import chronicle
import pytest
from chronicle.feeds import import_capture
from chronicle.feeds.generate import MarketGenerator, write_pcap

from tests.feeds_support import BINANCE_FILE, IEX_FILE, ITCH_FILE, sample
from tests.queue_support import Child

WRITER = """
from chronicle.feeds import import_capture
with import_capture(args[0]) as capture:
    classes = list(capture.classes.values())
    with publisher(Path(args[1]), schema=classes, segment_bytes=1 << 20) as writer:
        say("open")
        hear()
        for batch in capture:
            writer.append_mixed(
                batch.buffer, batch.offsets, batch.lengths, batch.type_ids, batch.timestamps_ns
            )
        say(writer.next_seq - 1)
"""

READER = """
import hashlib, json, threading
from collections import Counter
last = []
threading.Thread(target=lambda: last.append(int(hear())), daemon=True).start()
by_type, expected, digest = Counter(), 1, hashlib.sha256()
with subscriber(Path(args[0]), args[1]) as reader:
    say("open")
    while not last or expected <= last[0]:
        reader.wait(0.01)
        for message in reader:
            assert message.seq == expected
            expected += 1
            by_type[message.type_id] += 1
            digest.update(message.timestamp_ns.to_bytes(8, "little"))
            digest.update(message.payload)
        reader.commit()
    say(json.dumps([sorted(by_type.items()), digest.hexdigest(), reader.gaps]))
"""


def generated(folder: Path) -> Path:
    markets = [MarketGenerator(seed=3, venue=venue) for venue in range(2)]
    write_pcap(folder / "market.pcap", markets, count=20_000)
    return folder / "market.pcap"


def expected_of(capture_file: Path) -> tuple[int, list[object]]:
    """Decode in this process, without a queue."""
    by_type: Counter[int] = Counter()
    digest = hashlib.sha256()
    with import_capture(capture_file) as capture:
        for batch in capture:
            for index, type_id in enumerate(batch.type_ids.tolist()):
                by_type[type_id] += 1
                digest.update(int(batch.timestamps_ns[index]).to_bytes(8, "little"))
                digest.update(batch.payload(index))
    found = [[list(item) for item in sorted(by_type.items())], digest.hexdigest(), 0]
    return by_type.total(), found


CAPTURES: list[object] = [
    pytest.param(generated, id="generated market"),
    *(
        pytest.param(lambda _, name=name: sample(name), id=name, marks=pytest.mark.needs_data)
        for name in (IEX_FILE, ITCH_FILE, BINANCE_FILE)
    ),
]


@pytest.mark.parametrize("capture_of", CAPTURES)
def test_a_capture_is_read_exactly_while_another_process_writes_it(
    folder: Path, capture_of: Callable[[Path], Path]
):
    capture_file, path = capture_of(folder), folder / "queue"
    count, expected = expected_of(capture_file)
    assert count > 0
    with ExitStack() as stack:
        writer = stack.enter_context(Child(WRITER, capture_file, path))
        writer.expect("open")
        readers = [stack.enter_context(Child(READER, path, name)) for name in ("one", "two")]
        for reader in readers:
            reader.expect("open")
        writer.tell()
        writer.expect(str(count))
        for reader in readers:
            reader.tell(str(count))
        for reader in readers:
            assert json.loads(reader.hear()) == expected
            assert reader.finish() == []
        assert writer.finish() == []
    assert chronicle.verify(path)["damage"] == []
    assert len(chronicle.inspect(path)["segments"]) > 1 or count < 20_000
