"""The whole Python interface against a model that is obviously right: a list of messages.

The model knows what was appended, what each reader should see next, and up to where it has
committed. Where retention has deleted something it asks the queue for the oldest message that is
left, and checks that this was allowed: nothing that a live registered reader still needs, and
nothing without a policy.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import chronicle
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from tests.queue_support import SEGMENT_BYTES, Trade, publisher, subscriber, trades

FULL = os.environ.get("CHRONICLE_FIRE") == "full"
NAMES = ["a", "b", "c"]

sizes = st.one_of(st.integers(0, 64), st.integers(500, 5_000), st.sampled_from([0, 16_000, 60_000]))
# Steps back are as good as any other.
times = st.one_of(st.none(), st.integers(0, 1_000))


class Model:
    """What a reader should be: where it stands, and where its name has committed to."""

    def __init__(self, reader: chronicle.QueueReader, seq: int) -> None:
        self.reader = reader
        self.next = seq
        #: Messages that came while the reader stood before a deletion are still mapped.
        self.source: int | None = None


class QueueMachine(RuleBasedStateMachine):
    """One queue with restarting writers, readers that come and go, a fan-in and retention."""

    readers: ClassVar[Bundle[Model]] = Bundle("readers")
    merged: ClassVar[Bundle[Model]] = Bundle("merged")
    kept: ClassVar[Bundle[tuple[int, memoryview]]] = Bundle("kept")

    def __init__(self) -> None:
        super().__init__()
        shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.folder = Path(tempfile.mkdtemp(prefix="chronicle-test-", dir=shm))
        self.path = self.folder / "queue"
        self.log: list[tuple[int, int | None, bytes]] = []
        self.committed: dict[str, int] = {}
        self.live: dict[str, Model] = {}
        self.floor = 1
        self.epoch = 0

    @initialize(checksum=st.booleans())
    def create(self, checksum: bool) -> None:
        self.writer = publisher(self.path, checksum=checksum, schema=[Trade])
        self.fanin = chronicle.FanInReader()
        self.epoch = 1

    def teardown(self) -> None:
        for model in self.live.values():
            if model.source is None:
                model.reader.close()
        if self.epoch:
            self.fanin.close()
            self.writer.close()
            report = chronicle.verify(self.path)
            assert report["damage"] == []
            assert report["next_seq"] == len(self.log) + 1
        shutil.rmtree(self.folder)

    # --- The writer ---

    @rule(size=sizes, type_id=st.integers(1, 65_535), timestamp_ns=times)
    def append(self, size: int, type_id: int, timestamp_ns: int | None) -> None:
        payload = (len(self.log).to_bytes(4, "little") * (size // 4 + 1))[:size]
        self.log.append((type_id, timestamp_ns, payload))
        assert self.writer.append(type_id, payload, timestamp_ns=timestamp_ns) == len(self.log)

    @rule(count=st.integers(2, 10))
    def append_until_it_rolls(self, count: int) -> None:
        for _ in range(count):
            self.append(size=20_000, type_id=1, timestamp_ns=None)

    @rule(count=st.integers(0, 2_500), timestamp_ns=times)
    def append_many(self, count: int, timestamp_ns: int | None) -> None:
        array = trades(count, first=len(self.log))
        assert self.writer.append_many(array, timestamp_ns=timestamp_ns) == len(self.log) + 1
        self.log += [(Trade.type_id, timestamp_ns, item.tobytes()) for item in array]

    @rule(lengths=st.lists(st.integers(0, 3_000), max_size=40), timed=st.booleans())
    def append_mixed(self, lengths: list[int], timed: bool) -> None:
        buffer = np.arange(4_000, dtype="u1") + np.uint8(len(self.log) % 256)
        offsets = np.array([(7 * n) % 1_000 for n in range(len(lengths))], "u8")
        type_ids = np.array([n % 9 + 1 for n in range(len(lengths))], "u2")
        stamps = np.arange(len(lengths), dtype="u8") if timed else None
        first = self.writer.append_mixed(buffer, offsets, np.array(lengths, "u4"), type_ids, stamps)
        assert first == len(self.log) + 1
        for n, length in enumerate(lengths):
            start = int(offsets[n])
            payload = buffer[start : start + length].tobytes()
            self.log.append((int(type_ids[n]), n if timed else None, payload))

    @rule(flush=st.booleans())
    def restart_the_writer(self, flush: bool) -> None:
        if flush:
            assert self.writer.flush() == len(self.log)
        self.writer.close()
        self.writer = publisher(self.path)
        self.epoch += 1
        assert self.writer.next_seq == len(self.log) + 1
        assert self.writer.epoch == self.epoch
        assert self.writer.recovery.bytes_discarded == 0

    # --- Readers ---

    @precondition(lambda self: len(self.live) < len(NAMES))
    @rule(
        target=readers,
        data=st.data(),
        start=st.sampled_from(["resume", "earliest", "latest", "number"]),
    )
    def open_reader(self, data: st.DataObject, start: str) -> Any:
        name = data.draw(st.sampled_from([n for n in NAMES if n not in self.live]))
        last = len(self.log) + 1
        number = data.draw(st.integers(1, last)) if start == "number" else 0
        reader = subscriber(self.path, name, start=number or start)
        seq = {
            "resume": self.committed.get(name, 1),
            "earliest": 1,
            "latest": last,
            "number": number,
        }[start]
        if start != "resume" or name not in self.committed:
            self.committed[name] = seq
        self.live[name] = Model(reader, seq)
        return self.live[name]

    @rule(model=readers, count=st.integers(1, 300))
    def read(self, model: Model, count: int) -> None:
        if self.is_usable(model):
            self.check_gap(model, model.reader)
            for _ in range(min(count, len(self.log) + 1 - model.next)):
                self.check(model.reader.next(), model.next)
                model.next += 1
            if model.next > len(self.log):
                assert model.reader.next() is None
                assert model.reader.wait(0) is False
            else:
                assert model.reader.wait(0) is True

    @rule(model=readers, count_max=st.integers(1, 3_000))
    def read_batch(self, model: Model, count_max: int) -> None:
        if not self.is_usable(model):
            return
        self.check_gap(model, model.reader)
        if model.next > len(self.log):
            assert len(model.reader.read_batch(Trade)) == 0
            return
        type_id, _, payload = self.log[model.next - 1]
        if type_id != Trade.type_id or len(payload) != Trade.size_bytes:
            try:
                model.reader.read_batch(Trade, count_max=count_max)
            except chronicle.SchemaMismatch:
                assert model.reader.next_seq == model.next
                return
            raise AssertionError("a batch of something else")
        batch, headers = model.reader.read_batch_with_headers(Trade, count_max=count_max)
        assert 1 <= len(batch) <= count_max
        expected = self.log[model.next - 1 : model.next - 1 + len(batch)]
        assert batch.tobytes() == b"".join(payload for _, _, payload in expected)
        first = model.next
        assert headers["seq"].tolist() == list(range(first, first + len(batch)))
        model.next += len(batch)

    @rule(target=kept, model=readers)
    def keep_a_view(self, model: Model) -> Any:
        if not self.is_usable(model):
            return multiple()
        self.check_gap(model, model.reader)
        message = model.reader.next()
        if message is None:
            return multiple()
        model.next += 1
        return message.seq, message.payload

    @rule(view=kept)
    def a_view_stays_what_it_was(self, view: tuple[int, memoryview]) -> None:
        seq, payload = view
        assert bytes(payload) == self.log[seq - 1][2]

    @rule(model=readers)
    def commit(self, model: Model) -> None:
        if self.is_usable(model):
            model.reader.commit()
            self.committed[self.name_of(model)] = model.next

    @rule(model=readers, data=st.data())
    def seek(self, model: Model, data: st.DataObject) -> None:
        if not self.is_usable(model):
            return
        last = len(self.log) + 1
        to: Any = data.draw(
            st.one_of(st.sampled_from(["earliest", "latest", "resume"]), st.integers(0, last + 3))
        )
        try:
            model.reader.seek(to)
        except chronicle.SequenceNotWritten as error:
            self.check_that(isinstance(to, int) and to > last)
            self.check_that((error.sequence, error.next) == (to, last))
            return
        words = {"earliest": 1, "latest": last, "resume": self.committed[self.name_of(model)]}
        model.next = max(to, 1) if isinstance(to, int) else words[to]
        assert model.next <= last

    @rule(model=consumes(readers), close=st.booleans())
    def drop(self, model: Model, close: bool) -> None:
        if self.is_usable(model):
            name = self.name_of(model)
            del self.live[name]
            if close:
                model.reader.close()
            del model.reader
            gc.collect(0)

    # --- The fan-in ---

    @precondition(lambda self: len(self.fanin) < 2)
    @rule(target=merged, model=consumes(readers))
    def add_to_the_fanin(self, model: Model) -> Any:
        if not self.is_usable(model):
            return multiple()
        model.source = self.fanin.add_reader(model.reader)
        return model

    @rule(target=readers, model=consumes(merged))
    def remove_from_the_fanin(self, model: Model) -> Any:
        assert model.source is not None
        assert self.fanin.remove_reader(model.source) is model.reader
        model.source = None
        return model

    @precondition(lambda self: len(self.fanin) > 0)
    @rule(count=st.integers(1, 300))
    def read_from_the_fanin(self, count: int) -> None:
        sources: dict[int | None, Model] = {
            m.source: m for m in self.live.values() if m.source is not None
        }
        gaps = 0
        for _ in range(count):
            try:
                message = self.fanin.next()
            except chronicle.Gap as gap:
                gaps += 1
                self.check_that(gaps <= len(sources))
                model = sources[gap.source]
                self.check_that(gap.first_missing == model.next < gap.next <= self.floor)
                model.next = gap.next
                continue
            if message is None:
                assert all(m.next == len(self.log) + 1 for m in sources.values())
                assert self.fanin.wait(0) is False
                return
            model = sources[message.source]
            if message.seq != model.next:
                raise AssertionError(f"source {message.source}: {message.seq}, not {model.next}")
            self.check(message, model.next)
            model.next += 1

    @precondition(lambda self: len(self.fanin) > 0)
    @rule()
    def commit_the_fanin(self) -> None:
        self.fanin.commit()
        for name, model in self.live.items():
            if model.source is not None:
                self.committed[name] = model.next

    # --- Retention ---

    @rule()
    def everybody_commits_and_all_that_may_go_goes(self) -> None:
        for name, model in self.live.items():
            if model.source is None:
                model.reader.seek("latest")
                model.next = len(self.log) + 1
                model.reader.commit()
                self.committed[name] = model.next
        self.apply_retention(1)

    @rule(target=readers, data=st.data())
    def fall_behind(self, data: st.DataObject) -> Any:
        """A reader goes away, what it has not read is deleted, and it comes back."""
        usable = [n for n in self.live if self.is_usable(self.live[n])]
        if not usable:
            return multiple()
        name = data.draw(st.sampled_from(usable))
        model = self.live.pop(name)
        model.reader.close()
        self.append_until_it_rolls(4)
        self.everybody_commits_and_all_that_may_go_goes()
        self.live[name] = Model(subscriber(self.path, name), self.committed[name])
        return self.live[name]

    @rule(segments=st.one_of(st.none(), st.integers(0, 4)))
    def apply_retention(self, segments: int | None) -> None:
        before = chronicle.inspect(self.path)["floor_segment"]
        bytes_max = None if segments is None else segments * SEGMENT_BYTES
        report = chronicle.apply_retention(self.path, bytes_max=bytes_max)
        facts = chronicle.inspect(self.path)
        if segments is None:
            assert report["segments_deleted"] == 0
            assert facts["floor_segment"] == before
        first = facts["segments"][0]
        assert first["index"] == facts["floor_segment"]
        # Segment 0 of a queue that nobody wrote to has no first number yet.
        floor = max(first["first_seq"], 1)
        assert floor >= self.floor
        if floor > self.floor:
            for name in self.live:
                # A cursor below the old floor holds nothing that still existed.
                assert max(self.committed[name], self.floor) >= floor or (
                    self.committed[name] < self.floor
                ), f"{name} still needs {self.committed[name]}"
        self.floor = floor

    # --- What always holds ---

    @invariant()
    def the_numbers_agree(self) -> None:
        if self.epoch:
            assert self.writer.next_seq == len(self.log) + 1

    def check_that(self, true: bool) -> None:
        assert true

    def is_usable(self, model: Model) -> bool:
        return model.source is None and model in self.live.values()

    def name_of(self, model: Model) -> str:
        return next(name for name, other in self.live.items() if other is model)

    def check_gap(self, model: Model, reader: chronicle.QueueReader) -> None:
        """Let the reader report the gap that it stands before, if there is one."""
        if model.next >= self.floor:
            return
        # What is still mapped may be delivered although its file is gone.
        try:
            message = reader.next()
        except chronicle.Gap as gap:
            self.check_that(gap.first_missing == model.next < gap.next <= self.floor)
            self.check_that(gap.reason == "retention")
            model.next = gap.next
        else:
            self.check(message, model.next)
            model.next += 1

    def check(self, message: chronicle.Message | None, seq: int) -> None:
        assert message is not None
        type_id, timestamp_ns, payload = self.log[seq - 1]
        assert message.seq == seq
        assert message.type_id == type_id
        assert timestamp_ns is None or message.timestamp_ns == timestamp_ns
        assert message.payload == payload


QueueMachine.TestCase.settings = settings(
    max_examples=2_000 if FULL else 250,
    stateful_step_count=60 if FULL else 40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

pytestmark = pytest.mark.timeout(7_200 if FULL else 300)
TestQueueAgainstAList = QueueMachine.TestCase
