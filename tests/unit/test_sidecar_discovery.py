"""Discovery with the kernel's events: quick, and right when they are lost or too many."""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import shutil
import threading
from pathlib import Path

import chronicle
import pytest
from chronicle.sidecar.discovery import Appeared, Change, Ledger, Ready, Vanished
from chronicle.sidecar.scan import Pattern, queue_identity

from tests.queue_support import PATIENCE_S, overwrite, publisher
from tests.sidecar_support import eventually

#: Longer than any test: what is seen is seen because the kernel told.
NEVER_S = 1e6


def identity_of(path) -> str:
    identity: str = chronicle.inspect(path)["queue_id"]
    return identity


def remove(path: Path) -> None:
    """Remove a queue at one blow: one that is deleted file by file is not ready for a moment."""
    aside = path.with_name(f".{path.name}.removed")
    path.rename(aside)
    shutil.rmtree(aside)


def test_a_queue_is_told_of_when_it_appears_is_ready_and_vanishes(folder):
    changes: list[Change] = []
    with chronicle.Sidecar() as sidecar:
        discovery = sidecar.watch(
            folder / "orders" / "*" / "out", changes.append, interval_s=NEVER_S
        )
        eventually(lambda: discovery.looks >= 1)
        path = folder / "orders" / "abc" / "out"
        with publisher(path):
            identity = identity_of(path)
            eventually(lambda: Ready(str(path), identity) in changes)
        assert changes == [Appeared(str(path)), Ready(str(path), identity)]
        remove(path)
        eventually(lambda: len(changes) == 3)
        assert changes[2] == Vanished(str(path), identity)
        with publisher(path):
            identity = identity_of(path)
            eventually(lambda: Ready(str(path), identity) in changes)
        assert changes[3:] == [Appeared(str(path)), Ready(str(path), identity)]


def test_a_queue_that_is_deleted_file_by_file_vanishes_first_and_its_directory_later(folder):
    changes: list[Change] = []
    with chronicle.Sidecar() as sidecar:
        sidecar.watch(folder / "*", changes.append, interval_s=NEVER_S)
        path = folder / "q"
        with publisher(path):
            identity = identity_of(path)
            eventually(lambda: len(changes) == 2)
        (path / "control").unlink()
        eventually(lambda: len(changes) == 4)
        shutil.rmtree(path)
        eventually(lambda: len(changes) == 5)
    name = str(path)
    assert changes[2:] == [Vanished(name, identity), Appeared(name), Vanished(name, None)]


def test_a_queue_is_ready_when_its_first_writer_has_opened_it_which_no_event_tells(folder):
    changes: list[Change] = []
    with chronicle.Sidecar() as sidecar:
        discovery = sidecar.watch(folder / "*", changes.append, interval_s=NEVER_S)
        with publisher(folder / "made") as writer:
            identity = identity_of(writer.path)
        eventually(lambda: len(changes) == 2)
        # As it is before the writer has stored its epoch, through its mapping.
        half = folder / ".half"
        shutil.copytree(folder / "made", half)
        overwrite(half / "control", 128, bytes(8))
        half.rename(folder / "half")
        eventually(lambda: Appeared(str(folder / "half")) in changes)
        looks = discovery.looks
        eventually(lambda: discovery.looks > looks + 2)
        assert len(changes) == 3
        with (folder / "half" / "control").open("r+b") as file, mmap.mmap(file.fileno(), 0) as page:
            page[128] = 1
        eventually(lambda: len(changes) == 4)
    assert changes[3] == Ready(str(folder / "half"), identity)


def test_without_watching_the_interval_is_enough(folder):
    changes: list[Change] = []
    with chronicle.Sidecar() as sidecar:
        discovery = sidecar.watch(folder / "*", changes.append, interval_s=0.001, watch=False)
        with publisher(folder / "q"):
            eventually(lambda: len(changes) == 2)
        assert discovery.hints == 0


def test_a_root_that_comes_later_is_seen_coming(folder):
    changes: list[Change] = []
    with chronicle.Sidecar() as sidecar:
        discovery = sidecar.watch(folder / "not" / "yet" / "*", changes.append, interval_s=NEVER_S)
        eventually(lambda: discovery.looks >= 1)
        with publisher(folder / "not" / "yet" / "q"):
            eventually(lambda: len(changes) == 2)


def test_segments_that_come_and_go_wake_nobody(folder):
    changes: list[Change] = []
    with chronicle.Sidecar() as sidecar, publisher(folder / "q") as writer:
        discovery = sidecar.watch(folder / "*", changes.append, interval_s=NEVER_S)
        eventually(lambda: len(changes) == 2)
        looks = discovery.looks
        for _ in range(200):
            writer.append(1, bytes(4000))
        (folder / "end").mkdir()
        eventually(lambda: Appeared(str(folder / "end")) in changes)
        assert discovery.looks <= looks + 3


def test_when_the_kernel_cannot_keep_up_nothing_is_missed(folder):
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 100_000:
        pytest.skip(f"fs.inotify.max_queued_events={limit}: too many to overflow in a test")
    changes: list[Change] = []
    let_go, blocked = threading.Event(), threading.Event()

    def block():
        blocked.set()
        let_go.wait(PATIENCE_S)

    with chronicle.Sidecar() as sidecar:
        discovery = sidecar.watch(folder / "*", changes.append, interval_s=NEVER_S)
        eventually(lambda: discovery.looks >= 1)
        with publisher(folder / "gone") as writer:
            writer.append(1, b"")
        eventually(lambda: len(changes) == 2)
        sidecar.call_soon(block)
        assert blocked.wait(PATIENCE_S)
        for number in range(limit // 2 + 100):
            (folder / f"{number}").mkdir()
            (folder / f"{number}").rmdir()
        # All of this is behind what the kernel still had room for.
        remove(folder / "gone")
        with publisher(folder / "come"):
            pass
        let_go.set()
        eventually(lambda: len(changes) == 5)
        eventually(lambda: discovery.overflows >= 1)
        kinds = [(type(change), Path(change.path).name) for change in changes[2:]]
        assert kinds == [(Vanished, "gone"), (Appeared, "come"), (Ready, "come")]


def test_what_cannot_be_watched_is_visible_and_still_seen_at_the_interval(folder, monkeypatch):
    import errno

    import asyncinotify

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(asyncinotify.Inotify, "add_watch", refuse)
    changes: list[Change] = []
    with chronicle.Sidecar() as sidecar:
        discovery = sidecar.watch(folder / "*", changes.append, interval_s=0.001, name="d")
        (folder / "x").mkdir()
        eventually(lambda: changes)
        eventually(lambda: "raise fs.inotify.max_user_watches" in sidecar.health()["d"].detail)
        assert str(folder) in discovery.unwatched


def test_a_callback_that_fails_is_logged_and_loses_only_its_own_change(folder, caplog):
    seen = []

    async def on_change(change):
        seen.append(change)
        await asyncio.sleep(0)
        if len(seen) == 1:
            raise ValueError("not mine")

    with caplog.at_level(logging.ERROR, logger="chronicle.sidecar"), chronicle.Sidecar() as sidecar:
        sidecar.watch(folder / "*", on_change, name="d")
        with publisher(folder / "q"):
            eventually(lambda: len(seen) == 2)
        assert sidecar.health()["d"].restarts == 0
    assert "callback failed on Appeared" in caplog.text


def test_a_directory_that_cannot_be_read_is_an_error_and_nothing_vanishes(
    folder, monkeypatch, caplog
):
    changes: list[Change] = []
    real = os.scandir

    def scandir(path):
        if broken.is_set():
            raise OSError(5, "Input/output error", path)
        return real(path)

    broken = threading.Event()
    monkeypatch.setattr("chronicle.sidecar.scan.os.scandir", scandir)
    with chronicle.Sidecar() as sidecar, publisher(folder / "q"):
        sidecar.watch(folder / "*", changes.append, interval_s=0.001, name="d")
        eventually(lambda: len(changes) == 2)
        broken.set()
        eventually(lambda: sidecar.health()["d"].restarts >= 1)
        assert "Input/output error" in str(sidecar.health()["d"].last_error)
        broken.clear()
        (folder / "end").mkdir()
        eventually(lambda: len(changes) >= 3)
        assert changes[2:] == [Appeared(str(folder / "end"))]


# --- Patterns ---


def test_patterns_match_as_a_shell_does(folder):
    for name in ("a/out", "b/out", "b/in", ".hidden/out", "ax/out"):
        (folder / name).mkdir(parents=True)
    (folder / "file").write_bytes(b"")
    (folder / "link").symlink_to(folder / "a")

    def found(*parts):
        look = Pattern(folder.joinpath(*parts)).look(queue_identity())
        return {os.path.relpath(path, folder) for path in look.found}

    assert found("*", "out") == {"a/out", "b/out", "ax/out"}
    assert found("a*", "out") == {"a/out", "ax/out"}
    assert found("[ab]", "*") == {"a/out", "b/out", "b/in"}
    assert found(".*", "out") == {".hidden/out"}
    assert found("a", "out") == {"a/out"}
    assert found("nothing", "*") == set()
    # Neither a file nor a symbolic link is a directory.
    assert found("*") == {"a", "b", "ax"}
    assert found("file", "*") == set()


def test_a_control_file_that_is_none_does_not_make_a_queue_ready(folder):
    readiness = queue_identity()
    path = folder / "q"
    path.mkdir()
    assert readiness(str(path)) is None
    control = path / "control"
    for content in (b"", b"CHRNCTL1", bytes(4096), b"CHRNCTL1".ljust(4095, b"x")):
        control.write_bytes(content)
        assert readiness(str(path)) is None
        control.unlink()
    control.symlink_to("/dev/zero")
    assert readiness(str(path)) is None
    control.unlink()
    os.mkfifo(control)
    assert readiness(str(path)) is None
    control.unlink()
    control.mkdir()
    assert readiness(str(path)) is None


@pytest.mark.parametrize(("text", "hint"), [("/a/**/b", "write out how deep"), ("", "a path")])
def test_a_pattern_that_cannot_work_is_refused(text, hint):
    with pytest.raises(chronicle.BadArgument, match=hint):
        Pattern(text)


def test_a_relative_pattern_stays_where_it_was_made(folder, monkeypatch):
    monkeypatch.chdir(folder)
    pattern = Pattern("x/*")
    monkeypatch.chdir("/")
    assert pattern.text == str(folder / "x" / "*")


def test_a_queue_that_is_replaced_in_the_middle_of_a_look_is_not_taken_for_the_other(folder):
    old, new = folder / "q", folder / ".new"
    old.mkdir()
    new.mkdir()

    def readiness(path: str) -> str:
        """As one who looks just behind the replacement."""
        if new.exists():
            old.rename(folder / ".old")
            new.rename(old)
        return "new"

    pattern = Pattern(folder / "*")
    ledger = Ledger()
    look = pattern.look(readiness)
    assert look.almost == {str(old)}
    assert ledger.update(look.found) == [Appeared(str(old))]
    assert ledger.update(pattern.look(readiness).found) == [Ready(str(old), "new")]
