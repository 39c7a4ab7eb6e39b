"""What `doctor` can find: each check looks at one thing and says what is wrong and how to cure it.

A finding is a ``note`` (good to know, nothing to do at once), a ``warning`` (wrong, or about to go
wrong) or an ``error`` (messages are or will be lost, or cannot be read). Cures are commands where
there is one. Checks only look; nothing is repaired here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from chronicle.bus.liveness import Ends, lag, missing_segments
from chronicle.cli.facts import age, age_of_message, state_of
from chronicle.cli.machine import FileSystem, file_system_of
from chronicle.cli.output import bytes_text, duration_text, plural, shell_quoted

Severity = Literal["note", "warning", "error"]

NETWORK_FILE_SYSTEMS = frozenset({"9p", "afs", "ceph", "cifs", "fuse.sshfs", "nfs", "nfs4", "smb3"})
NEARLY_FULL = 0.9


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes
    ----------
    severity
        ``note``, ``warning`` or ``error``.
    code
        A short name that stays the same, for scripts.
    text
        What was found.
    cure
        A command, or what to do; ``None`` if there is nothing to do.
    """

    severity: Severity
    code: str
    text: str
    cure: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a run of segments is there.

    Attributes
    ----------
    first, last
        Segment indices, both included.
    reason
        ``"tail"``, ``"ready"``, ``"left over"``, ``"unreadable"``, ``"reader"`` or ``"no policy"``.
    readers
        The live readers that still need them.
    """

    first: int
    last: int
    reason: str
    readers: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of segments."""
        return self.last - self.first + 1


def holds(facts: dict[str, Any]) -> list[Hold]:
    """Say for each segment why it is there; runs with the same answer are one."""
    shift = facts["segment_bytes"].bit_length() - 1
    needs = [
        (r["name"], r["next_position"] >> shift if r["placed"] else 0)
        for r in facts["readers"]
        if r["live"] and r["error"] is None
    ]

    def why(segment: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        state = state_of(segment, facts)
        if state != "sealed":
            return state, ()
        names = tuple(name for name, needed in needs if needed <= segment["index"])
        return ("reader" if names else "no policy"), names

    result = []
    # A segment that is missing ends a run: what is left of its index is the same within one.
    numbered = enumerate(facts["segments"])
    groups = groupby(numbered, key=lambda pair: (*why(pair[1]), pair[1]["index"] - pair[0]))
    for (reason, names, _), run in groups:
        indices = [segment["index"] for _, segment in run]
        result.append(Hold(indices[0], indices[-1], reason, names))
    return result


def examine(
    path: str, facts: dict[str, Any], ends: Ends, damage: list[tuple[int, str]] | None
) -> list[Finding]:
    """Run all checks; worst first. `damage` is what `verify` found, or ``None`` without it."""
    found = [
        *check_writer(facts, ends),
        *check_damage(path, facts, ends, damage),
        *check_readers(path, facts, ends),
        *check_segments(path, facts),
        *check_cuts(path, facts),
        *check_rolls(facts),
        *check_room(path, facts),
        *check_permissions(path),
        *check_schema(path),
    ]
    order = ("error", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def check_writer(facts: dict[str, Any], ends: Ends) -> Iterator[Finding]:
    """Look whether somebody is writing."""
    if facts["writer_live"]:
        return
    if not facts["epoch"]:
        text = "no writer has opened the queue yet, or the first one died while it did"
        yield Finding("note", "no-writer", text, "open it with chronicle.Queue.open_publisher")
        return
    newest = ""
    if ends.newest_ns:
        newest = f"; the newest message is {duration_text(age(ends.newest_ns))} old"
    pid = facts["writer_pid"]
    text = f"no live writer: the last one (pid {pid}) closed the queue or died{newest}"
    cure = "start the writer again: opening recovers the queue, and the sequence goes on"
    yield Finding("note", "no-writer", text, cure)


def check_damage(
    path: str, facts: dict[str, Any], ends: Ends, damage: list[tuple[int, str]] | None
) -> Iterator[Finding]:
    """Look whether everything can be read."""
    restore = "restore the file from a copy"
    for segment in facts["segments"]:
        if segment["error"] is not None and damage is None:
            cure = _way_past(path, facts, segment["index"], restore)
            yield Finding("error", "segment-unreadable", segment["error"], cure)
    missing = missing_segments(facts)
    if missing and damage is None:
        names = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in missing)
        text = f"segment files are missing that retention did not delete: {names}"
        cure = _way_past(path, facts, missing[-1][1], "restore the files from a copy")
        yield Finding("error", "segment-missing", text, cure)
    shift = facts["segment_bytes"].bit_length() - 1
    for position, why in damage or ():
        cure = _way_past(path, facts, position >> shift, restore)
        text = f"damage in segment {position >> shift}, at position {position:#x}: {why}"
        yield Finding("error", "damage", text, cure)
    if ends.error is not None and not damage and not missing:
        text = f"the end of the queue cannot be read: {ends.error}"
        yield Finding(
            "error", "end-unreadable", text, shell_quoted("chronicle", "doctor", path, "--verify")
        )


def _way_past(path: str, facts: dict[str, Any], index: int, otherwise: str) -> str:
    after = [s["first_seq"] for s in facts["segments"] if s["index"] > index and s["first_seq"]]
    if not after:
        return otherwise
    go_on = shell_quoted("chronicle", "tail", path, "--from", str(after[0]))
    return f"{otherwise}; behind it the queue goes on: {go_on}"


def check_readers(path: str, facts: dict[str, Any], ends: Ends) -> Iterator[Finding]:
    """Look who lags, who is gone, whose cursor is damaged."""
    for reader in facts["readers"]:
        name = reader["name"]
        forget = shell_quoted("chronicle", "reader", "rm", path, name)
        if reader["error"] is not None:
            text = f"the cursor of reader '{name}' cannot be read: {reader['error']}"
            cure = "rm " + shell_quoted(f"{path}/readers/{name}.cursor")
            yield Finding("error", "cursor-unreadable", text, cure)
            continue
        if not reader["placed"]:
            if not reader["live"]:
                text = f"reader '{name}' died before it had found its place; it holds nothing"
                yield Finding("note", "reader-stale", text, forget)
            continue
        messages, bytes_behind = lag(reader, ends)
        behind = f"{plural(messages, 'message')} ({bytes_text(bytes_behind)})"
        waited = age_of_message(path, max(reader["next_seq"], ends.first_seq)) if messages else None
        since = "" if waited is None else f", the oldest {duration_text(waited)} old"
        if reader["live"]:
            if bytes_behind >= facts["segment_bytes"]:
                cure = (
                    f"let it commit more often, or stop pid {reader['pid']}: a reader that is not "
                    "running holds nothing"
                )
                text = f"reader '{name}' (pid {reader['pid']}) is {behind} behind{since}"
                yield Finding("warning", "reader-lags", text, cure)
        else:
            lost = max(0, ends.first_seq - reader["next_seq"])
            gone = f"; {plural(lost, 'message')} of those are deleted already" if lost else ""
            text = f"reader '{name}' is not running; {behind} wait for it{since}{gone}"
            cure = f"start it again, or forget it: {forget}"
            yield Finding("note", "reader-stale", text, cure)


def check_segments(path: str, facts: dict[str, Any]) -> Iterator[Finding]:
    """Look for segments that should not be there, and for room in the table."""
    for hold in holds(facts):
        if hold.reason == "left over":
            count = plural(hold.count, "segment")
            text = f"{count} below the floor: a retention was killed while it deleted"
            cure = shell_quoted("chronicle", "retain", path, "--bytes", "1TiB")
            yield Finding("warning", "left-over", text, cure)
    count = facts["tail_segment"] - facts["floor_segment"] + 1
    if count >= facts["segments_max"] * NEARLY_FULL:
        text = (
            f"{count:,} of at most {facts['segments_max']:,} segments are in use; "
            "at the limit append raises QueueFull"
        )
        size = bytes_text(facts["segment_bytes"] * (facts["segments_max"] // 2)).replace(" ", "")
        cure = shell_quoted("chronicle", "retain", path, "--bytes", size)
        yield Finding("warning", "table-nearly-full", text, cure)


def check_cuts(path: str, facts: dict[str, Any]) -> Iterator[Finding]:
    """Look whether a power loss has cost messages."""
    if facts["set_aside"]:
        files = [f"{path}/segments/{name}" for name in facts["set_aside"]]
        cut_off = bytes_text(facts["cut_bytes"])
        text = (
            f"after a power loss {cut_off} could not be verified and were set aside in "
            f"{plural(len(files), 'file')}"
        )
        cure = "look at them, then delete them: rm " + shell_quoted(*files)
        yield Finding("warning", "set-aside", text, cure)
    elif facts["cuts"]:
        cut_off = bytes_text(facts["cut_bytes"])
        text = f"recoveries after a power loss: {facts['cuts']:,}; they cut off {cut_off}"
        cure = "give the writer a flush_interval, or flush more often"
        yield Finding("note", "cuts", text, cure)


def check_rolls(facts: dict[str, Any]) -> Iterator[Finding]:
    """Look whether the writer ever had to make its next segment itself."""
    inline = facts["rolls_inline"]
    if inline:
        text = (
            f"{inline:,} of {inline + facts['rolls']:,} rolls were done inline: "
            "each kept the writer waiting for the file system"
        )
        cure = (
            "open the publisher with provisioner=chronicle.Provisioner(), or with larger segments"
        )
        yield Finding("note", "rolls-inline", text, cure)


def check_room(path: str, facts: dict[str, Any]) -> Iterator[Finding]:
    """Look where the queue lives, and whether there is room for the next segments."""
    where = file_system_of(path)
    free = os.statvfs(path)
    free_bytes = free.f_bavail * free.f_frsize
    if free_bytes < 2 * facts["segment_bytes"]:
        text = (
            f"{bytes_text(free_bytes)} are free on {where.mount_point}, a segment takes "
            f"{bytes_text(facts['segment_bytes'])}: soon append raises DiskFull"
        )
        size = bytes_text(max(1, len(facts["segments"]) // 2) * facts["segment_bytes"])
        cure = shell_quoted("chronicle", "retain", path, "--bytes", size.replace(" ", ""))
        yield Finding("warning", "little-room", text, f"free some space: {cure}")
    yield from check_place(where)


def check_place(where: FileSystem) -> Iterator[Finding]:
    """Look whether it is the right kind of file system."""
    if where.kind in NETWORK_FILE_SYSTEMS:
        text = (
            f"the queue is on a network file system ({where.kind}): readers on other hosts see "
            "torn data"
        )
        cure = "move it to a local one; a queue is for one host"
        yield Finding("warning", "network-file-system", text, cure)
    elif not where.is_memory:
        text = (
            f"the queue is on a disk ({where.kind} at {where.mount_point}): writeback protects its "
            "pages, and the next append to each page faults"
        )
        yield Finding("note", "on-disk", text, "put the hot queues on a tmpfs such as /dev/shm")


def check_permissions(path: str) -> Iterator[Finding]:
    """Look whether only those who should can read or write the files."""
    root = Path(path)
    owner = root.stat().st_uid
    # Whoever made the control file decided whether the group may read.
    for_group = (root / "control").stat().st_mode & stat.S_IRGRP
    too_much = stat.S_IRWXO | (stat.S_IWGRP if for_group else stat.S_IRWXG)
    loose, foreign = [], []
    for file in [root, *sorted(root.rglob("*"))]:
        try:
            status = file.lstat()
        except FileNotFoundError:
            continue  # Retention, or a reader that was forgotten meanwhile.
        name = "." if file == root else str(file.relative_to(root))
        if stat.S_ISLNK(status.st_mode) or status.st_uid != owner:
            foreign.append(name)
        elif status.st_mode & too_much:
            loose.append(name)
    if loose:
        text = (
            f"others may read or change {_some(loose)}; whoever cuts a file short under a live "
            "mapping kills its readers (SIGBUS)"
        )
        cure = shell_quoted("chmod", "-R", "g-w,o-rwx" if for_group else "go-rwx", path)
        yield Finding("warning", "permissions", text, cure)
    if foreign:
        text = f"links, or files of another owner: {_some(foreign)}; links are not followed"
        yield Finding(
            "warning", "foreign-files", text, f"look at them: {shell_quoted('ls', '-laR', path)}"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more


def check_schema(path: str) -> Iterator[Finding]:
    """Look whether tools can decode the messages."""
    from chronicle.errors import ChronicleError
    from chronicle.queue import Queue

    try:
        types = Queue(path).types
    except ChronicleError as error:
        cure = f"restore it, or delete it: rm {shell_quoted(path + '/queue.json')}"
        yield Finding("error", "schema-unreadable", str(error), cure)
        return
    if not types:
        text = "the queue has no schema: tools show its messages as bytes"
        yield Finding("note", "no-schema", text, "open the publisher with schema=[...]")
