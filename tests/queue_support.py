"""What the tests of queues share: opening small ones, filling them, other processes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import chronicle
import pytest
from chronicle.message import MessageBase, char8, f64, i64, u32, u64

#: The smallest segment there is, so that a few hundred messages fill several.
SEGMENT_BYTES = 1 << 16
SEGMENT_HEADER_BYTES = 4224
RECORD_HEADER_BYTES = 32
ROOT = Path(__file__).resolve().parents[1]
#: How long the tests wait for what must happen. Nothing passes or fails by being slow.
PATIENCE_S = 120.0


@chronicle.message(7)
class Trade(MessageBase):
    """A message of 24 bytes. Without padding, which NumPy does not always copy."""

    price: i64
    symbol: char8
    qty: u64


@chronicle.message(8)
class Quote(MessageBase):
    """A message of 32 bytes, the last four of them padding."""

    bid: f64
    ask: f64
    symbol: char8
    size: u32


def publisher(path: Path, **options: Any) -> chronicle.QueueWriter:
    """Open a writer of a queue with the smallest segments."""
    options.setdefault("segment_bytes", SEGMENT_BYTES)
    return chronicle.Queue.open_publisher(path, **options)


def subscriber(path: Path, name: str | None = "reader", **options: Any) -> chronicle.QueueReader:
    return chronicle.Queue.open_subscriber(path, name, **options)


def payload_of(seq: int, size: int = 40) -> bytes:
    """Return what the message with this number carries: its number, again and again."""
    return (seq.to_bytes(8, "little") * (size // 8 + 1))[:size]


def fill(
    writer: chronicle.QueueWriter, count: int, *, size: int = 40, type_id: int = 1
) -> list[bytes]:
    """Append `count` messages that carry their numbers; return their payloads."""
    made = [payload_of(writer.next_seq + index, size) for index in range(count)]
    for payload in made:
        writer.append(type_id, payload)
    return made


def fill_segments(writer: chronicle.QueueWriter, segments: int) -> int:
    """Append large messages until the writer is that many segments on; return the next number."""
    goal = (writer.position // SEGMENT_BYTES) + segments
    while writer.position // SEGMENT_BYTES < goal:
        fill(writer, 1, size=4_000)
    return writer.next_seq


def payloads(messages: Iterable[chronicle.Message]) -> list[bytes]:
    return [bytes(message.payload) for message in messages]


def seqs(messages: Iterable[chronicle.Message]) -> list[int]:
    return [message.seq for message in messages]


def trades(count: int, *, first: int = 0) -> Any:
    """Return a structured array of trades that differ in every field."""
    import numpy as np

    array = np.zeros(count, dtype=Trade.dtype)
    array["price"] = np.arange(first, first + count) * 100
    array["qty"] = np.arange(first, first + count) + 1
    array["symbol"] = [b"S%d" % (index % 7) for index in range(first, first + count)]
    return array


def segment_file(path: Path, index: int = 0) -> Path:
    return path / "segments" / f"{index:020}.seg"


def overwrite(file: Path, offset: int, data: bytes) -> None:
    """Change bytes of a file in place, as a stray write would."""
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def snapshot(path: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


# --- Other threads and processes ---


@contextmanager
def running(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Run `work` in a thread; at the end wait for it and raise what it raised."""
    failures: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    yield thread
    thread.join(PATIENCE_S)
    assert not thread.is_alive(), "the thread did not finish"
    if failures:
        raise failures[0]


_PRELUDE = """
import os, sys, time
from pathlib import Path
import chronicle
from tests.queue_support import *
args = sys.argv[1:]
def say(*words):
    print(*words, flush=True)
def hear():
    return sys.stdin.readline().strip()
"""


class Child:
    """A Python process that runs a piece of code and talks in lines.

    The code has ``args``, ``say(*words)`` and ``hear()``, and everything of this module.
    """

    def __init__(self, code: str, *args: object) -> None:
        program = _PRELUDE + textwrap.dedent(code)
        self.process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-W", "error", "-c", program, *map(str, args)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._unread = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def hear(self) -> str:
        """Return the next line that the child says; fail with its errors if it says none."""
        out = self.process.stdout
        assert out is not None
        while b"\n" not in self._unread:
            ready, _, _ = select.select([out], [], [], PATIENCE_S)
            piece = os.read(out.fileno(), 1 << 16) if ready else b""
            if not piece:
                self.process.kill()
                errors = self.process.communicate()[1].decode()
                pytest.fail(f"the child said {self._unread!r} and ended:\n{errors}")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def expect(self, line: str) -> None:
        assert self.hear() == line

    def tell(self, line: str = "go") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """End the child as `kill -9` does, and wait until it is gone."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def finish(self) -> list[str]:
        """Wait for the end, which must be a clean one; return the lines that were not heard yet."""
        out, errors = self.process.communicate(timeout=PATIENCE_S)
        text = (self._unread + out).decode()
        assert self.process.returncode == 0, (
            f"exit {self.process.returncode}\n{text}{errors.decode()}"
        )
        assert errors == b"", errors.decode()
        return text.splitlines()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def run_python(code: str, *args: object) -> list[str]:
    """Run code as a `Child` does; return its lines. It must end cleanly and silently."""
    with Child(code, *args) as child:
        return child.finish()


def mounts_allowed() -> bool:
    """Whether this process may make a mount namespace."""
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=64k", "x", "/mnt"]
    try:
        return subprocess.run(probe, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def run_python_mounted(mount: list[str], code: str, *args: object) -> list[str]:
    """As `run_python`, in a mount namespace of its own in which `mount` was run first."""
    if not mounts_allowed():
        pytest.skip("needs root: this process may not mount")
    program = _PRELUDE + textwrap.dedent(code)
    script = 'mount "$@" && exec "$PYTHON" -W error -c "$PROGRAM" $ARGS'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *mount],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "PROGRAM": program,
            "ARGS": " ".join(map(str, args)),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()
