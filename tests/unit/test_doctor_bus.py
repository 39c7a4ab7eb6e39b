"""`chronicle doctor BUS`: each fault is made, found, explained, and mended by what it says."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chronicle.bus import Bus, Endpoint, Ready
from chronicle.bus.markers import write_marker
from chronicle.cli import main
from chronicle.cli.bus_findings import examine_bus, process_state
from chronicle.heartbeat import HEARTBEAT_FILE, Heartbeat
from chronicle.hot import CountersFile

from tests.queue_support import (
    Child,
    fill_segments,
    overwrite,
    publisher,
    segment_file,
    subscriber,
)

OWNER = """
from chronicle.bus import Bus
endpoint = Bus(args[0]).open_endpoint("orders/a", valid_s=float(args[1]))
writer = publisher(endpoint.path / "out")
endpoint.ready(["out"])
say("there")
hear()
"""


@pytest.fixture
def bus(folder):
    return Bus(folder / "bus")


@pytest.fixture
def endpoint(bus: Bus) -> Iterator[Endpoint]:
    """An endpoint in order, with a queue that is written."""
    with (
        bus.open_endpoint("orders/a", valid_s=1_000) as endpoint,
        publisher(endpoint.path / "out"),
    ):
        endpoint.ready(["out"])
        yield endpoint


class Doctor:
    """Runs the command on a bus, in this process."""

    def __init__(self, bus: Bus, capsys: pytest.CaptureFixture[str]) -> None:
        self._bus = bus
        self._capsys = capsys

    def report(self, *arguments: str) -> dict[str, Any]:
        code = main(["doctor", str(self._bus.path), "--json", *arguments])
        report: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        assert report["healthy"] == (code == 0)
        return report

    def finds(self, *codes: str) -> list[dict[str, Any]]:
        """Return the findings, which have these codes."""
        findings: list[dict[str, Any]] = self.report()["findings"]
        assert sorted(found["code"] for found in findings) == sorted(codes), findings
        return findings


@pytest.fixture
def doctor(bus, capsys):
    return Doctor(bus, capsys)


def mend(finding: dict[str, Any]) -> None:
    """Do what a finding says: the last command of its cure."""
    command = finding["cure"].rpartition(": ")[2].rpartition(", then ")[2].rpartition("or ")[2]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PATH": path})


def test_a_bus_in_order_has_nothing_wrong_and_is_shown(bus, endpoint, doctor, capsys):
    report = doctor.report()
    assert report["findings"] == []
    assert report["endpoints"] == [
        {
            "name": "orders/a",
            "state": "alive",
            "reason": "",
            "ready": True,
            "queues": ["out"],
            "pid": os.getpid(),
            "epoch": 1,
        }
    ]
    assert [(queue["name"], queue["writer"]) for queue in report["queues"]] == [
        ("orders/a/out", "alive")
    ]
    assert main(["doctor", str(bus.path)]) == 0
    text = capsys.readouterr().out
    assert "orders/a" in text
    assert "nothing is wrong" in text
    assert "1 endpoint, 1 queue" in text


def test_a_killed_owner_and_its_stale_marker_are_found_and_mended(bus, doctor):
    with Child(OWNER, bus.path, 1_000) as child:
        child.expect("there")
        child.kill()
    dead, stale = doctor.finds("dead-process", "stale-marker")
    assert f"pid {child.pid}" in dead["text"]
    assert "lock free" in dead["text"]
    mend(stale)
    (dead,) = doctor.finds("dead-process")
    mend(dead)
    doctor.finds()


def test_a_stopped_owner_is_found_and_mended(bus, doctor):
    with Child(OWNER, bus.path, 0.001) as child:
        child.expect("there")
        child.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        (stalled,) = doctor.finds("stalled")
        assert "heartbeat stale" in stalled["text"]
        assert stalled["cure"] == f"it is stopped: kill -CONT {child.pid}"
        mend(stalled)
        os.waitid(os.P_PID, child.pid, os.WCONTINUED | os.WNOWAIT)
        # It runs, and still does not renew.
        (stalled,) = doctor.finds("stalled")
        assert f"kill {child.pid}" in stalled["cure"]


def test_the_state_of_a_process_is_read_whatever_its_name_is(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) b (c) R) T 1 7 7 0")
    assert process_state(7, tmp_path) == "T"
    assert process_state(8, tmp_path) is None


def test_ready_of_another_life_and_without_an_owner_is_stale(bus, endpoint, doctor):
    directory = os.open(endpoint.path, os.O_RDONLY)
    write_marker(directory, Ready("1" * 32, ("out",)))
    (found,) = doctor.finds("stale-marker")
    assert "another life" in found["text"]
    endpoint.close()
    write_marker(directory, Ready("1" * 32, ("out",)))
    os.close(directory)
    (found,) = doctor.finds("stale-marker")
    assert "no owner" in found["text"]
    mend(found)
    doctor.finds()


def test_an_owner_that_is_not_ready_is_a_note(bus, doctor):
    with bus.open_endpoint("a"):
        (found,) = doctor.finds("not-ready")
        assert found["severity"] == "note"
        assert doctor.report()["healthy"]


def test_a_promise_that_is_not_kept_is_found(bus, endpoint, doctor):
    endpoint.ready(["out", "nothing"])
    (found,) = doctor.finds("ready-without-queue")
    assert "no such queue" in found["text"]
    publisher(endpoint.path / "nothing").close()
    (found,) = doctor.finds("writer-gone")
    assert found["path"].endswith("orders/a/nothing")


def test_a_writer_that_misses_its_heartbeats_is_found(bus, endpoint, doctor):
    late = Heartbeat(1, 1, os.getpid(), 1)
    file = endpoint.path / "out" / HEARTBEAT_FILE
    file.write_bytes(late.pack())
    file.chmod(0o600)
    doctor.finds("writer-stalled")


def test_a_reader_that_lags_and_one_that_is_gone_are_found(bus, endpoint, doctor):
    path = endpoint.path / "out"
    subscriber(path, "gone").close()
    with subscriber(path, "slow"):
        endpoint.ready(["out", "more"])
        with publisher(endpoint.path / "more") as writer, subscriber(writer.path, "slow"):
            fill_segments(writer, 3)
            lag, stale = doctor.finds("reader-lags", "reader-stale")
    assert lag["path"].endswith("orders/a/more")
    assert "reader 'slow'" in lag["text"]
    mend(stale)
    assert not (path / "readers" / "gone.cursor").exists()


def test_damaged_files_are_found(bus, endpoint, doctor):
    endpoint.ready(["out", "more"])
    with publisher(endpoint.path / "more") as writer:
        fill_segments(writer, 4)
        segment_file(endpoint.path / "more", 1).unlink()
        (found,) = doctor.finds("segment-missing")
        assert found["severity"] == "error"
    shutil.rmtree(endpoint.path / "more")
    endpoint.ready(["out"])
    subscriber(endpoint.path / "out", "r").close()
    overwrite(endpoint.path / "out" / "readers" / "r.cursor", 0, b"garbage!")
    (found,) = doctor.finds("cursor-unreadable")
    mend(found)
    doctor.finds()
    overwrite(endpoint.path / "out" / "control", 0, b"garbage!")
    (found,) = doctor.finds("unreadable")
    assert "control" in found["text"]


def test_damaged_messages_are_found_by_verify(bus, endpoint, doctor):
    endpoint.ready(["out", "more"])
    path = endpoint.path / "more"
    with publisher(path, checksum=True) as writer:
        for _ in range(3):
            writer.append(1, b"x" * 8)
        with subscriber(path, None) as reader:
            reader.next()
            overwrite(segment_file(path), reader.position + 32, b"y")
        doctor.finds()
        (found,) = doctor.report("--verify")["findings"]
        assert found["code"] == "damage"


@pytest.mark.parametrize("marker", ["LEASE", "READY"])
def test_garbage_in_a_marker_is_found_and_mended(bus, endpoint, doctor, marker):
    (endpoint.path / marker).write_text("garbage")
    (found,) = doctor.finds("refused")
    assert "is not a marker" in found["text"]
    assert doctor.report()["endpoints"] == [{"name": "orders/a", "state": "refused"}]
    mend(found)
    assert not (endpoint.path / marker).exists()


@pytest.mark.parametrize("where", [".", "orders", "orders/a"])
def test_wrong_permissions_and_owners_are_found_and_mended_at_every_level(
    bus, endpoint, doctor, where
):
    path = bus.path / where
    path.chmod(0o755)
    (found,) = doctor.finds("permissions")
    assert found["severity"] == "warning"
    mend(found)
    path.chmod(0o722)
    (found,) = doctor.finds("permissions")
    assert found["severity"] == "error"
    mend(found)
    path.chmod(0o700)
    doctor.finds()
    os.chown(path, 12_345, -1)
    (found,) = doctor.finds("foreign-owner")
    assert "uid 12345" in found["text"]
    mend(found)
    doctor.finds()


def test_wrong_permissions_and_owners_of_files_and_queues_are_found(bus, endpoint, doctor):
    (endpoint.path / "LEASE").chmod(0o644)
    (found,) = doctor.finds("permissions")
    mend(found)
    os.chown(endpoint.path / "LEASE", 12_345, -1)
    (found,) = doctor.finds("refused")
    assert "uid=12345" in found["text"]
    mend(found)
    endpoint.renew()
    queue = endpoint.path / "out"
    (queue / "control").chmod(0o644)
    (found,) = doctor.finds("permissions")
    mend(found)
    os.chown(queue / "control", 12_345, -1)
    (found,) = doctor.finds("foreign-files")
    os.chown(queue / "control", 0, -1)
    doctor.finds()


def test_links_are_found_at_every_level_and_not_followed(bus, endpoint, doctor, tmp_path):
    outside = tmp_path / "outside"
    (outside / "deeper").mkdir(parents=True)
    (outside / "LEASE").write_text("garbage")
    links = [bus.path / "link", bus.path / "orders" / "link", endpoint.path / "link"]
    for link in links:
        link.symlink_to(outside)
    for found in doctor.finds("link", "link", "link"):
        mend(found)
    doctor.finds()
    assert (outside / "LEASE").exists()
    (endpoint.path / "LOCK").rename(endpoint.path / ".lock")
    (endpoint.path / "LOCK").symlink_to(outside)
    codes = {found["code"] for found in doctor.report()["findings"]}
    assert codes == {"link", "refused", "unknown"}


def test_what_lies_about_is_found_and_mended(bus, endpoint, doctor):
    strange = [bus.path / "core.123", bus.path / "orders" / "READY.bak", endpoint.path / "notes"]
    for path in strange:
        path.write_text("")
    (endpoint.path / ".LEASE").write_text("half a mar")
    (endpoint.path / ".out.removed").mkdir()
    findings = doctor.finds("unknown", "unknown", "unknown", "left-over", "left-over")
    for found in findings:
        mend(found)
    assert not any(path.exists() for path in strange)
    doctor.finds()


def test_counters_files_belong_on_a_bus(bus, endpoint, doctor):
    CountersFile.create(endpoint.path / "COUNTERS")
    CountersFile.create(bus.path / "COUNTERS")
    doctor.finds()
    (endpoint.path / "COUNTERS").chmod(0o666)
    (found,) = doctor.finds("permissions")
    mend(found)
    (endpoint.path / ".COUNTERS.123").write_text("")
    (found,) = doctor.finds("left-over")
    mend(found)
    doctor.finds()


def test_a_directory_of_something_else_is_told_of_once_and_never_to_be_removed(
    bus, endpoint, doctor
):
    strange = bus.path / "project"
    (strange / "src" / "deep").mkdir(parents=True)
    for number in range(20):
        (strange / "src" / "deep" / f"{number}.py").write_text("")
    (strange / ".git").mkdir()
    (bus.path / ".venv").mkdir()
    for found in doctor.finds("unknown", "unknown"):
        assert "ls -la" in found["cure"]
        assert "rm" not in found["cure"].split()
    for number in range(20):
        (endpoint.path / f"{number}.log").write_text("")
    texts = [found["text"] for found in doctor.finds("unknown", "unknown", "unknown")]
    assert any(text.startswith("20 things in") for text in texts), texts
    strange.chmod(0o777)
    assert {found["severity"] for found in doctor.report()["findings"]} == {"error", "warning"}


def test_a_name_with_escape_codes_does_not_steer_the_terminal(bus, endpoint, capsys):
    (bus.path / "\x1b[2J").write_text("")
    (bus.path / "\x1b[3J").mkdir(mode=0o700)
    (bus.path / "\x1b[3J" / "LEASE").write_text("x")
    assert main(["doctor", str(bus.path)]) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_a_directory_tree_that_is_too_deep_is_not_walked(bus, endpoint, doctor):
    path = bus.path
    for _ in range(20):
        path = path / "d"
        path.mkdir(mode=0o700)
    doctor.finds("too-deep")


def test_a_boot_that_is_another_one_says_no_age(bus, endpoint):
    directory = os.open(endpoint.path, os.O_RDONLY)
    write_marker(directory, replace(endpoint.lease, boot="0" * 36))
    os.close(directory)
    ((_, found),) = examine_bus(str(bus.path)).findings
    assert found.code == "stalled"
    assert "lease:" in found.text


@pytest.mark.parametrize("arguments", [[], ["PATH", "--host"], ["PATH", "--cores", "1"]])
def test_wrong_use_is_told(arguments, capsys):
    assert main(["doctor", *arguments]) == 2
    assert "--host" in capsys.readouterr().err


def test_the_bus_may_be_reached_through_a_link(bus, endpoint, tmp_path, capsys):
    link = tmp_path / "link"
    link.symlink_to(bus.path)
    assert main(["doctor", str(link)]) == 0
    assert str(Path(bus.path).resolve()) in capsys.readouterr().out
