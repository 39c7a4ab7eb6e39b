"""Mirrors that are cut short: by a power loss at any change, and by `kill -9` at any moment.

A power loss is played: every change that a mirror makes is written down, and a device is made out
of the list up to a random point, in which every sector, size and name that was not synced is of
any age between its last sync and the end. What is restored from that must be a prefix of what the
queue had, with all that the mirror had reported as durable. Then life goes on from there, and is
cut short again.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import chronicle
import pytest
from chronicle.sidecar import Mirror, restore
from chronicle.sidecar.files import Disk

from tests.queue_support import SEGMENT_BYTES, Child, fill, publisher, subscriber

FULL = os.environ.get("CHRONICLE_FIRE") == "full"
SECTOR = 512


@dataclass
class File:
    """A file as the device has it, and what was changed since it was last synced."""

    content: bytearray
    size_is_durable: bool = False
    pending: list[tuple[int, bytes]] = field(default_factory=list)

    def sync(self) -> None:
        for offset, data in self.pending:
            self.content[offset : offset + len(data)] = data
        self.pending.clear()
        self.size_is_durable = True

    def after_power_loss(self, rng: random.Random) -> bytes | None:
        """Return one of the states in which the device may have it; ``None``: it has no size."""
        if not self.size_is_durable and rng.random() < 0.5:
            return None
        versions: dict[int, list[bytes]] = {}
        now = bytearray(self.content)
        for offset, data in self.pending:
            now[offset : offset + len(data)] = data
            for sector in range(offset // SECTOR, (offset + len(data) - 1) // SECTOR + 1):
                piece = bytes(now[sector * SECTOR : (sector + 1) * SECTOR])
                versions.setdefault(sector, []).append(piece)
        result = bytearray(self.content)
        # Some power losses take nearly everything, some nearly nothing.
        bias = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        for sector, pieces in versions.items():
            if rng.random() < bias:
                piece = rng.choice(pieces)
                result[sector * SECTOR : sector * SECTOR + len(piece)] = piece
        return bytes(result)


class Device:
    """What a device has of a directory tree, replayed from a list of changes."""

    def __init__(self, start: Path) -> None:
        self.root = start
        self.folders = {p for p in [start, *start.rglob("*")] if p.is_dir()}
        #: As they are on the device, and what was changed in each folder since.
        self.names: dict[Path, File] = {
            p: File(bytearray(p.read_bytes()), size_is_durable=True)
            for p in start.rglob("*")
            if p.is_file()
        }
        self.pending: dict[Path, list[tuple[str, Path, Path | None, File | None]]] = {}
        self.live = dict(self.names)

    def apply(self, change: tuple[Any, ...]) -> None:
        kind, path, *rest = change
        if kind == "folder":
            self.folders.add(path)
        elif kind == "create":
            file = File(bytearray(rest[0]))
            self.live[path] = file
            self._note("link", path, None, file)
        elif kind == "write":
            data, offset = rest
            file = self.live[path]
            if offset + len(data) > len(file.content):
                file.content.extend(bytes(offset + len(data) - len(file.content)))
            file.pending.append((offset, data))
        elif kind == "sync":
            self.live[path].sync()
        elif kind == "rename":
            self.live[rest[0]] = self.live.pop(path)
            self._note("rename", path, rest[0], None)
        elif kind == "remove":
            del self.live[path]
            self._note("remove", path, None, None)
        elif kind == "names":
            for entry in self.pending.pop(path, []):
                self._settle(entry, self.names)

    def _note(self, kind: str, path: Path, to: Path | None, file: File | None) -> None:
        self.pending.setdefault(path.parent, []).append((kind, path, to, file))

    @staticmethod
    def _settle(entry: tuple[Any, ...], names: dict[Path, File]) -> None:
        kind, path, to, file = entry
        if kind == "link":
            names[path] = file
        elif kind == "rename":
            names[to] = names.pop(path)
        else:
            names.pop(path)

    def write_out(self, to: Path, rng: random.Random) -> None:
        """Make a directory tree of what a power loss leaves. A journal keeps names in order."""
        names = dict(self.names)
        for entries in self.pending.values():
            for entry in entries[: rng.randint(0, len(entries))]:
                self._settle(entry, names)
        for folder in sorted(self.folders):
            (to / folder.relative_to(self.root)).mkdir(parents=True, exist_ok=True)
        for path, file in names.items():
            content = file.after_power_loss(rng)
            (to / path.relative_to(self.root)).write_bytes(content or b"")


class Recorder(Disk):
    """A disk that writes down what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[tuple[Any, ...]] = []

    def make_directory(self, path, mode):
        super().make_directory(path, mode)
        self.changes.append(("folder", path))

    def create(self, path, len_bytes, mode):
        super().create(path, len_bytes, mode)
        self.changes.append(("create", path, len_bytes))

    def write(self, path, data, offset):
        super().write(path, data, offset)
        self.changes.append(("write", path, bytes(data), offset))

    def sync(self, path):
        super().sync(path)
        self.changes.append(("sync", path))

    def rename(self, old, new):
        super().rename(old, new)
        self.changes.append(("rename", old, new))

    def remove(self, path):
        super().remove(path)
        self.changes.append(("remove", path))

    def sync_names(self, directory):
        super().sync_names(directory)
        self.changes.append(("names", directory))


class Life:
    """From one power loss to the next: a queue in memory, and a mirror of it on the device."""

    def __init__(self, folder: Path, rng: random.Random, checksum: bool) -> None:
        self.rng = rng
        self.checksum = checksum
        # All of one size: then what one life has left ends where a message of the next begins.
        self.sizes = [40] if rng.random() < 0.4 else [0, 8, 40, 400, 4_000, 30_000]
        self.queue = folder / "queue"
        self.mirror = folder / "mirror"
        self.mirror.mkdir(exist_ok=True)
        self.start = folder / "start"
        shutil.copytree(self.mirror, self.start)
        self.disk = Recorder()
        #: (number of changes, what was reported as durable then)
        self.promises: list[tuple[int, int]] = [(0, 0)]

    def live(self) -> None:
        """Write and mirror for a while."""
        rng, name = self.rng, self.rng.choice([None, "mirror"])
        keep_bytes = rng.choice([None, 2 * SEGMENT_BYTES])
        with publisher(self.queue, checksum=self.checksum) as writer:
            if writer.next_seq == 1 or rng.random() < 0.5:
                fill(writer, rng.randint(0, 30))
            for _ in range(rng.randint(1, 3)):
                options: dict[str, Any] = {
                    "name": name,
                    "keep_bytes": keep_bytes,
                    "cursor_interval_s": 0.0,
                }
                options["turn_bytes_max"] = rng.choice([1, SEGMENT_BYTES, 1 << 30])
                with Mirror(self.queue, self.mirror, disk=self.disk, **options) as mirror:
                    for _ in range(rng.randint(1, 6)):
                        self.write_something(writer)
                        mirror.turn()
                        promised = (len(self.disk.changes), mirror.status.durable_seq)
                        self.promises.append(promised)

    def write_something(self, writer: chronicle.QueueWriter) -> None:
        rng = self.rng
        for _ in range(rng.randint(0, 4)):
            size = rng.choice(self.sizes)
            if rng.random() < 0.3 and len(self.sizes) > 1:
                many = rng.randint(1, 400)
                # Numbers that differ, so that one message is never taken for another.
                body = rng.randbytes(8 * many)
                writer._append_many(1, body, 8)
            else:
                fill(writer, rng.randint(1, 30 if size < 4_000 else 5), size=size)
        if rng.random() < 0.3:
            with subscriber(self.queue, rng.choice(["a", "b"])) as reader:
                for _ in range(rng.randint(0, 50)):
                    # Where the mirror kept less than all, or something was cut.
                    with contextlib.suppress(chronicle.Gap):
                        reader.next()
                reader.commit()

    def lose_power(self, to: Path) -> int:
        """Leave at `to` what the device has at a random moment; return what was promised then."""
        moment = self.rng.randint(0, len(self.disk.changes))
        device = Device(self.start)
        device.root = self.mirror
        device.folders = {self.mirror / f.relative_to(self.start) for f in device.folders}
        moved = {self.mirror / p.relative_to(self.start): f for p, f in device.names.items()}
        device.names, device.live = moved, dict(moved)
        for change in self.disk.changes[:moment]:
            if change[1] == self.mirror.parent:
                continue  # Names beside the mirror's are not played.
            device.apply(change)
        device.write_out(to, self.rng)
        return max(seq for count, seq in self.promises if count <= moment)


def contents(path: Path) -> dict[int, tuple[int, bytes]]:
    first = chronicle.verify(path)["first_seq"]
    with subscriber(path, None, start=first) as reader:
        return {m.seq: (m.timestamp_ns, bytes(m.payload)) for m in reader}


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("seed", range(400 if FULL else 40))
def test_after_any_power_loss_a_mirror_gives_back_a_prefix_with_all_that_it_promised(
    folder, seed, checksum
):
    rng = random.Random(seed * 2 + checksum)
    promised_before = 0
    for number in range(4):
        here, after = folder / f"life-{number}", folder / f"life-{number + 1}"
        here.mkdir(exist_ok=True)
        life = Life(here, rng, checksum)
        life.live()
        had = contents(life.queue)
        (after / "mirror").mkdir(parents=True)
        promised = max(life.lose_power(after / "mirror"), promised_before)
        shutil.rmtree(here)
        if not (after / "mirror" / "control").exists():
            # The first promise had not been made; whoever begins anew finds no obstacle.
            assert promised == 0
            shutil.rmtree(after / "mirror")
            continue
        report = restore(after / "mirror", after / "queue")
        got = contents(after / "queue")
        assert report.next_seq - 1 >= promised, (report, promised)
        assert report.durable_seq >= promised
        assert not report.recovery.below_durable
        assert got == {seq: had[seq] for seq in got}
        if got:
            assert list(got) == list(range(min(got), report.next_seq))
        assert not chronicle.verify(after / "queue")["damage"]
        for found in chronicle.inspect(after / "queue")["readers"]:
            assert found["error"] is None
            if found["name"] == "mirror":
                continue
            with subscriber(after / "queue", found["name"]) as reader:
                told = gap_of(reader)
                # A cursor that is ahead of its messages would be told of a cut.
                assert told in (None, "retention")
        promised_before = report.durable_seq
        # The cut is not repeated at the next start, and the sequence goes on.
        with publisher(after / "queue") as writer:
            assert writer.recovery.same_boot
            assert writer.next_seq == report.next_seq


def gap_of(reader: chronicle.QueueReader) -> str | None:
    try:
        reader.next()
    except chronicle.Gap as gap:
        return gap.reason
    return None


WRITER_AND_MIRROR = """
    import random, threading
    path, target, checksum = Path(args[0]), Path(args[1]), args[2] == "True"
    writer = publisher(path, checksum=checksum)
    sidecar = chronicle.Sidecar().start()
    mirror = sidecar.mirror(path, target, interval_s=0.0005, keep_bytes=1 << 30)

    @sidecar.every(0.001)
    def report():
        say(mirror.status.durable_seq)

    rng = random.Random(1)
    while True:
        fill(writer, rng.randint(1, 30), size=8 * rng.randint(1, 100))
        time.sleep(0.0002)
"""


@pytest.mark.parametrize("checksum", [False, True])
def test_a_killed_mirror_gives_back_all_that_it_had_reported(folder, checksum):
    rng = random.Random(checksum)
    path, mirror = folder / "queue", folder / "mirror"
    reported = 0
    for _ in range(40 if FULL else 6):
        with Child(WRITER_AND_MIRROR, path, mirror, checksum) as child:
            goal = reported + rng.randint(1, 300)
            while reported < goal:
                reported = max(reported, int(child.hear()))
            time.sleep(rng.random() * 0.02)
            child.kill()
            out = child.process.stdout
            assert out is not None
            rest = (child._unread + out.read()).split(b"\n")[:-1]
            reported = max([reported, *map(int, rest)])
        had = contents(path)
        assert len(had) >= reported
        other = folder / "restored"
        result = restore(mirror, other)
        got = contents(other)
        assert reported <= result.next_seq - 1 <= len(had)
        assert got == {seq: had[seq] for seq in range(1, result.next_seq)}
        shutil.rmtree(other)
        if rng.random() < 0.5:
            # As after a reboot: the queue in memory is gone.
            shutil.rmtree(path)
            reported = restore(mirror, path).durable_seq
