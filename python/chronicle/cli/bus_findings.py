"""What `doctor` can find on a bus: who does not live, what is left over, what is out of place.

Walks the whole directory, follows no link, and changes nothing. Queues that it meets are examined
as `doctor QUEUE` does, without reading their messages.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chronicle.bus.endpoint import Bus, Status
from chronicle.bus.liveness import QueueStatus, find_ends, queue_status
from chronicle.bus.markers import Lease, Ready
from chronicle.cli.findings import Finding, examine
from chronicle.cli.output import duration_text, plural, shell_quoted
from chronicle.errors import ChronicleError, FormatError
from chronicle.hot.counters import COUNTERS_FILE

__all__ = ["BusReport", "examine_bus", "is_bus"]

LOCK = "LOCK"
MARKERS = frozenset({LOCK, Lease.FILE, Ready.FILE})
#: What a process that was killed has left beside its markers.
HALF_WRITTEN = re.compile(rf"\.({Lease.FILE}|{Ready.FILE}|{COUNTERS_FILE}\.\d+)", re.ASCII)
#: Directories that are on their way in or out: `.orders.restoring`, `.orders.removed`.
HALF_MADE = re.compile(r"\..+\.[a-z]+", re.ASCII)
#: So many strange things in one place are told one by one; of more, their number.
STRANGE_MAX = 3
#: How deep to look: a bus has three or four levels.
DEPTH_MAX = 16
#: Codes of a queue's notes that matter on a bus.
NOTES_OF_QUEUES = frozenset({"reader-stale"})


@dataclass
class BusReport:
    """What was found.

    Attributes
    ----------
    endpoints, queues
        By name below the bus.
    findings
        With the path that each is about.
    """

    endpoints: dict[str, Status | None] = field(default_factory=dict)
    queues: dict[str, QueueStatus] = field(default_factory=dict)
    findings: list[tuple[str, Finding]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "endpoints": [
                {"name": name, **_endpoint_dict(status)} for name, status in self.endpoints.items()
            ],
            "queues": [
                {
                    "name": name,
                    "writer": status.writer.state,
                    "reason": status.writer.reason,
                    "pid": status.writer.pid,
                    "next_seq": status.next_seq,
                    "readers": [
                        {
                            "name": reader.name,
                            "state": reader.state,
                            "reason": reader.reason,
                            "lag_messages": reader.lag_messages,
                        }
                        for reader in status.readers
                    ],
                }
                for name, status in self.queues.items()
            ],
            "findings": [{"path": path, **finding.as_dict()} for path, finding in self.findings],
        }


def _endpoint_dict(status: Status | None) -> dict[str, Any]:
    if status is None:
        return {"state": "refused"}
    lease = status.lease
    return {
        "state": status.state,
        "reason": status.reason,
        "ready": status.ready,
        "queues": list(status.queues),
        "pid": None if lease is None else lease.pid,
        "epoch": None if lease is None else lease.epoch,
    }


def is_bus(path: str) -> bool:
    """Whether there is an endpoint or a queue somewhere below a directory."""
    for directory, below, names in os.walk(path):
        depth = directory.removeprefix(path).count("/")
        if depth and (MARKERS & set(names) or "control" in names):
            return True
        if depth >= DEPTH_MAX:
            below.clear()
    return False


def examine_bus(path: str, *, with_messages: bool = False, proc: Path = Path("/proc")) -> BusReport:
    """Look at everything on a bus, on request at every message; findings with the worst first."""
    report = BusReport()
    _Walk(path, report, with_messages, proc).directory(path, 0)
    order = ("error", "warning", "note")
    report.findings.sort(key=lambda found: (order.index(found[1].severity), found[0]))
    return report


class _Walk:
    def __init__(self, root: str, report: BusReport, with_messages: bool, proc: Path) -> None:
        self._root = root
        self._bus = Bus(root)
        self._report = report
        self._with_messages = with_messages
        self._proc = proc

    def _name(self, path: str) -> str:
        return path.removeprefix(self._root).lstrip("/")

    def _find(self, path: str, *found: Finding) -> None:
        self._report.findings += [(path, finding) for finding in found]

    def directory(self, path: str, depth: int) -> None:
        """Look at a directory that is no queue, and at what is below."""
        told = len(self._report.findings)
        known = len(self._report.endpoints) + len(self._report.queues)
        self._find(path, *check_directory(path))
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except PermissionError as error:
            text = f"'{path}' cannot be read: {error.strerror}"
            self._find(path, Finding("error", "unreadable", text, "run doctor as its owner"))
            return
        names = {entry.name for entry in entries}
        is_endpoint = bool(names & MARKERS) and depth > 0
        if is_endpoint:
            self._endpoint(path)
        for entry in entries:
            self._entry(entry, is_endpoint=is_endpoint, depth=depth)
        is_strange = known == len(self._report.endpoints) + len(self._report.queues)
        self._sum_up(path, told, is_strange=is_strange)

    def _sum_up(self, path: str, told: int, *, is_strange: bool) -> None:
        """Tell of many strange things in one place as one: nobody reads a thousand lines.

        In a directory without an endpoint or a queue that is everything that was found in it, but
        what is an error; else it is what does not belong there.
        """
        new = self._report.findings[told:]
        strange = [
            found
            for found in new
            if (is_strange and found[1].severity != "error")
            or (found[1].code == "unknown" and str(Path(found[0]).parent) == path)
        ]
        if len(strange) <= STRANGE_MAX:
            return
        self._report.findings[told:] = [found for found in new if found not in strange]
        if is_strange:
            text = f"'{path}' does not belong here: neither an endpoint nor a queue is in it"
        else:
            text = f"{len(strange)} things in '{path}' do not belong there, '{strange[0][0]}' first"
        cure = f"look at it: {shell_quoted('ls', '-la', path)}"
        self._find(path, Finding("warning", "unknown", text, cure))

    def _entry(self, entry: os.DirEntry[str], *, is_endpoint: bool, depth: int) -> None:
        path = entry.path
        if entry.is_symlink():
            text = f"'{path}' is a symbolic link; links are not followed"
            cure = shell_quoted("rm", path)
            self._find(path, Finding("warning", "link", text, f"look at it, then {cure}"))
        elif not entry.is_dir(follow_symlinks=False):
            self._find(path, *check_file(entry, is_endpoint=is_endpoint))
        elif HALF_MADE.fullmatch(entry.name):
            text = f"'{path}' is hidden: what was being made or removed when its process ended"
            cure = shell_quoted("rm", "-r", path)
            self._find(path, Finding("note", "left-over", text, f"if nobody needs it: {cure}"))
        elif entry.name.startswith("."):
            text = f"'{path}' does not belong here: nothing of a bus has such a name"
            cure = f"look at it: {shell_quoted('ls', '-la', path)}"
            self._find(path, Finding("warning", "unknown", text, cure))
        elif os.path.lexists(f"{path}/control"):
            self._queue(path)
        elif depth < DEPTH_MAX:
            self.directory(path, depth + 1)
        else:
            text = f"'{path}' is too deep for a bus; it was not looked at"
            self._find(path, Finding("warning", "too-deep", text, shell_quoted("ls", "-laR", path)))

    # --- Endpoints ---

    def _endpoint(self, path: str) -> None:
        name = self._name(path)
        try:
            status = self._bus.status(name)
        except ChronicleError as error:
            self._report.endpoints[name] = None
            if not self._is_told(getattr(error, "path", path)):
                self._find(path, _refusal(error))
            return
        self._report.endpoints[name] = status
        has_ready = os.path.lexists(f"{path}/{Ready.FILE}")
        self._find(path, *check_endpoint(path, status, has_ready=has_ready, proc=self._proc))
        for queue in status.queues if status.state != "dead" else ():
            self._find(f"{path}/{queue}", *check_promise(path, queue))

    def _is_told(self, path: str) -> bool:
        """Whether it is known already why this, or what it stands in, is refused."""
        return any(
            finding.severity == "error" and f"{path}/".startswith(f"{about}/")
            for about, finding in self._report.findings
        )

    # --- Queues ---

    def _queue(self, path: str) -> None:
        from chronicle.cli.output import look_at
        from chronicle.queue import verify

        self._find(path, *check_directory(path, is_queue=True))
        status = queue_status(path)
        self._report.queues[self._name(path)] = status
        try:
            facts = look_at(path)
            damage = verify(path)["damage"] if self._with_messages else None
            found = examine(path, facts, find_ends(path, facts), damage)
        except (FormatError, OSError) as error:
            cure = "restore the file from a copy"
            self._find(path, Finding("error", "unreadable", str(error), cure))
            return
        for finding in found:
            if finding.severity != "note" or finding.code in NOTES_OF_QUEUES:
                self._find(path, _about(path, finding))
        if status.writer.state == "stalled":
            pid = status.writer.pid
            text = f"'{path}': its writer lives (pid {pid}) and has missed its heartbeats"
            self._find(
                path, Finding("warning", "writer-stalled", text, _way_to_wake(pid, self._proc))
            )


def _about(path: str, finding: Finding) -> Finding:
    return Finding(finding.severity, finding.code, f"'{path}': {finding.text}", finding.cure)


def _refusal(error: Exception) -> Finding:
    """Turn what the bus has refused into a finding: the cure stands behind the last semicolon."""
    text, _, cure = str(error).rpartition("; ")
    path = getattr(error, "path", "")
    commands = {
        "remove it": shell_quoted("rm", path),
        "chown it": shell_quoted("chown", str(os.geteuid()), path),
        "chmod go-w it": shell_quoted("chmod", "go-w", path),
    }
    return Finding("error", "refused", text or str(error), commands.get(cure, cure))


def check_directory(path: str, *, is_queue: bool = False) -> Iterator[Finding]:
    """Look whether a directory is its owner's alone."""
    found = Path(path).lstat()
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid():
        text = f"'{path}' belongs to uid {found.st_uid}, not to {os.geteuid()}: it is refused"
        cure = shell_quoted("chown", str(os.geteuid()), path)
        yield Finding("error", "foreign-owner", text, cure)
    if mode & 0o022:
        text = f"others may write into '{path}' (mode {mode:04o}): it is refused"
        yield Finding("error", "permissions", text, shell_quoted("chmod", "go-w", path))
    elif mode & 0o007 and not is_queue:
        text = f"everybody may look into '{path}' (mode {mode:04o})"
        yield Finding("warning", "permissions", text, shell_quoted("chmod", "o-rwx", path))


def check_file(entry: os.DirEntry[str], *, is_endpoint: bool) -> Iterator[Finding]:
    """Look whether a file belongs on a bus, and is its owner's alone."""
    path, name = entry.path, entry.name
    if is_endpoint and HALF_WRITTEN.fullmatch(name):
        text = f"'{path}' was being written when its owner was killed"
        cure = f"nothing: its next owner writes over it; or {shell_quoted('rm', path)}"
        yield Finding("note", "left-over", text, cure)
        return
    # A process has a counters file without an endpoint, too.
    if name != COUNTERS_FILE and not (is_endpoint and name in MARKERS):
        text = f"'{path}' does not belong here: a bus has endpoints, their markers, and queues"
        cure = f"look at it, then {shell_quoted('rm', path)}"
        yield Finding("warning", "unknown", text, cure)
        return
    found = entry.stat(follow_symlinks=False)
    if stat.S_ISREG(found.st_mode) and found.st_mode & 0o077:
        text = f"others may read or change '{path}' (mode {stat.S_IMODE(found.st_mode):04o})"
        yield Finding("warning", "permissions", text, shell_quoted("chmod", "go-rwx", path))


def check_endpoint(path: str, status: Status, *, has_ready: bool, proc: Path) -> Iterator[Finding]:
    """Look whether an endpoint's owner lives and works, and whether its markers speak for it."""
    lease = status.lease
    ready = f"{path}/{Ready.FILE}"
    if status.state == "absent" and has_ready:
        text = f"'{ready}' is stale: the endpoint has no owner"
        yield Finding("warning", "stale-marker", text, shell_quoted("rm", ready))
    if lease is None:
        return
    if status.state == "dead":
        text = f"'{path}': its owner (pid {lease.pid}, epoch {lease.epoch}) is dead: lock free"
        markers = [f"{path}/{Lease.FILE}", *([ready] if has_ready else [])]
        cure = f"start it again; or, if it shall not come back: {shell_quoted('rm', *markers)}"
        yield Finding("warning", "dead-process", text, cure)
        if has_ready:
            text = f"'{ready}' is stale: whoever trusts it without the lock waits for nobody"
            yield Finding("warning", "stale-marker", text, shell_quoted("rm", ready))
        return
    if status.state == "stalled":
        yield _stalled(path, lease, proc)
    if has_ready and not status.ready:
        text = f"'{ready}' is of another life of its owner"
        cure = f"the owner (pid {lease.pid}) must call ready(); or {shell_quoted('rm', ready)}"
        yield Finding("warning", "stale-marker", text, cure)
    elif not status.ready:
        text = f"'{path}': its owner (pid {lease.pid}) lives and has not said that it is ready"
        yield Finding("note", "not-ready", text, "wait, or look into its log")


def _stalled(path: str, lease: Lease, proc: Path) -> Finding:
    import time

    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    age_s = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - lease.renewed_ns) / 1e9
    since = f" for {duration_text(age_s)}" if lease.boot == boot and age_s > 0 else ""
    text = (
        f"'{path}': its owner lives (pid {lease.pid}) and has not renewed its lease{since}: "
        "heartbeat stale"
    )
    return Finding("warning", "stalled", text, _way_to_wake(lease.pid, proc))


def _way_to_wake(pid: int, proc: Path) -> str:
    state = process_state(pid, proc)
    if state in ("T", "t"):
        return f"it is stopped: {shell_quoted('kill', '-CONT', str(pid))}"
    if state is None:
        return "its lock is held by a child that it has left behind: find it with lsof, and end it"
    end = shell_quoted("kill", str(pid))
    return f"look into its log (a failed hot thread, a loop that hangs); or end it: {end}"


def process_state(pid: int, proc: Path) -> str | None:
    """Return the letter of a process's state, as of proc(5); ``None`` if there is no process."""
    try:
        text = (proc / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name before it may hold anything.
    return text.rpartition(")")[2].split()[0]


def check_promise(path: str, queue: str) -> Iterator[Finding]:
    """Look whether a queue that READY names is there, and written."""
    status = queue_status(f"{path}/{queue}")
    writer = status.writer
    if writer.state == "absent":
        text = f"READY names '{queue}' of '{path}', which cannot be opened: {writer.reason}"
        yield Finding("warning", "ready-without-queue", text, "its owner must open the publisher")
    elif writer.state == "dead":
        text = f"READY names '{queue}' of '{path}', whose writer is gone: lock free"
        cure = "its owner must open the publisher again, or take it out of ready()"
        yield Finding("warning", "writer-gone", text, cure)


def summary(report: BusReport) -> str:
    """Return what there is, in a line."""
    return f"{plural(len(report.endpoints), 'endpoint')}, {plural(len(report.queues), 'queue')}"
