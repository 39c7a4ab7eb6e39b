"""Endpoints: who owns them, what others see, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import chronicle
import pytest
from chronicle.bus import Bus, Lease, Ready
from chronicle.bus.lock import take_lock
from chronicle.bus.markers import write_marker
from hypothesis import given
from hypothesis import strategies as st

from tests.queue_support import publisher

LEASE = Lease("0" * 32, 1, 1, "0" * 36, 0, 1)


@pytest.fixture
def bus(tmp_path: Path) -> Bus:
    return Bus(tmp_path / "bus")


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def put(bus: Bus, name: str, marker: Lease | Ready) -> None:
    directory = os.open(bus.path / name, os.O_RDONLY)
    write_marker(directory, marker)
    os.close(directory)


def test_an_endpoint_is_seen_from_its_opening_to_its_end(bus):
    assert bus.status("orders/alpha").reason == "missing"
    with bus.open_endpoint("orders/alpha") as endpoint:
        status = bus.status("orders/alpha")
        assert (status.state, status.ready, status.lease) == ("alive", False, endpoint.lease)
        endpoint.ready(["in", "out"])
        assert bus.status("orders/alpha").ready
    assert bus.status("orders/alpha").reason == "no lease"
    assert names_in(endpoint.path) == ["LOCK"]
    with pytest.raises(chronicle.Closed):
        endpoint.renew()


def test_a_second_owner_is_told_who_the_first_is(bus):
    with bus.open_endpoint("a"), pytest.raises(chronicle.EndpointActive) as error:
        bus.open_endpoint("a")
    assert error.value.pid == os.getpid()
    bus.open_endpoint("a").close()


def test_a_killed_owner_is_dead_and_the_next_one_goes_on_with_the_epoch(bus):
    code = (
        "import sys, time; from chronicle.bus import Bus\n"
        "e = Bus(sys.argv[1]).open_endpoint('a'); e.ready(['q'])\n"
        "print('there', flush=True); time.sleep(1000)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(bus.path)], stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        before = bus.status("a")
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    after = bus.status("a")
    assert (before.state, before.ready) == ("alive", True)
    assert (after.state, after.reason, after.ready) == ("dead", "lock free", False)
    with bus.open_endpoint("a") as endpoint:
        assert endpoint.lease.epoch == 2
        assert endpoint.lease.instance != before.lease.instance
        assert not bus.status("a").ready


@pytest.mark.parametrize("change", [{"renewed_ns": 0}, {"boot": "0" * 36}])
def test_an_owner_that_does_not_renew_is_stalled_until_it_does(bus, change):
    with bus.open_endpoint("a", valid_s=1_000) as endpoint:
        put(bus, "a", replace(endpoint.lease, **{"valid_ns": 10**9, **change}))
        assert (bus.status("a").state, bus.status("a").reason) == ("stalled", "heartbeat stale")
        endpoint.renew()
        assert bus.status("a").state == "alive"


def test_ready_of_another_instance_counts_for_nothing(bus):
    with bus.open_endpoint("a"):
        put(bus, "a", Ready("1" * 32, ("q",)))
        assert not bus.status("a").ready


@pytest.mark.parametrize(
    "name", ["", "..", "a/../b", "/a", "a/", "a//b", ".a", "a b", "a\n", "é", "READY", "x" * 256]
)
def test_a_name_that_could_leave_the_bus_or_hide_is_refused(bus, name):
    with pytest.raises(chronicle.BadArgument, match="bad name"):
        bus.open_endpoint(name)
    with pytest.raises(chronicle.BadArgument, match="bad name"):
        bus.status(name)
    assert not bus.path.exists()


def refused(bus: Bus, reason: str) -> None:
    with pytest.raises(chronicle.BusRefused, match=reason):
        bus.status("a")
    with pytest.raises(chronicle.BusRefused, match=reason):
        bus.open_endpoint("a")


def test_links_files_and_open_doors_in_place_of_a_directory_are_refused(bus, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    bus.path.mkdir(mode=0o700)
    at = bus.path / "a"
    at.symlink_to(outside)
    refused(bus, "symbolic link")
    assert list(outside.iterdir()) == []
    at.unlink()
    at.write_text("")
    refused(bus, "no directory")
    at.unlink()
    at.mkdir()
    at.chmod(0o722)
    refused(bus, "mode=0722; chmod")


def test_a_file_in_place_of_the_bus_is_refused(bus):
    bus.path.write_text("")
    refused(bus, "a bus is one")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_somebody_else_is_refused(bus):
    bus.open_endpoint("a").close()
    os.chown(bus.path / "a", 12_345, -1)
    refused(bus, "uid=12345")
    os.chown(bus.path / "a", 0, -1)
    put(bus, "a", LEASE)
    os.chown(bus.path / "a" / "LEASE", 12_345, -1)
    refused(bus, "uid=12345")


@pytest.mark.parametrize("marker", ["LEASE", "READY", "LOCK"])
def test_a_marker_that_is_a_link_is_refused(bus, tmp_path, marker):
    bus.open_endpoint("a").close()
    put(bus, "a", LEASE)
    target = tmp_path / "target"
    (bus.path / "a" / marker).unlink(missing_ok=True)
    (bus.path / "a" / marker).symlink_to(target)
    with pytest.raises(chronicle.BusRefused, match="cannot be opened"):
        bus.status("a")
    assert not target.exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe", "not a marker"),
        (b"[" * 4_000, "not a marker"),
        (b"[]", "JSON object"),
        (b" " * 5_000, "longer than 4096"),
        (json.dumps({"format": 2, **asdict(LEASE)}).encode(), "format: found=2"),
        (json.dumps({"format": True, **asdict(LEASE)}).encode(), "format: found=True"),
        (json.dumps({"format": 1, **asdict(LEASE), "more": 1}).encode(), "fields: found"),
        (json.dumps({"format": 1, **asdict(replace(LEASE, pid=-1))}).encode(), "pid: found=-1"),
        (json.dumps({"format": 1, **asdict(replace(LEASE, instance="x"))}).encode(), "instance"),
        (json.dumps({"format": 1, **asdict(LEASE), "epoch": 1.5}).encode(), "epoch: found=1.5"),
    ],
)
def test_garbage_in_a_marker_is_refused_with_the_reason(bus, text, reason):
    bus.open_endpoint("a").close()
    (bus.path / "a" / "LEASE").write_bytes(text)
    refused(bus, reason)


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text(), st.lists).map(
        lambda value: json.dumps({"format": 1, "instance": "0" * 32, "queues": value}).encode()
    )
)
def test_whatever_stands_in_a_marker_is_taken_or_refused(tmp_path_factory, text):
    bus = Bus(tmp_path_factory.mktemp("bus"))
    with bus.open_endpoint("a"):
        (bus.path / "a" / "READY").write_bytes(text)
        try:
            is_ready = bus.status("a").ready
        except chronicle.BusRefused:
            is_ready = False
        # Nothing of this is of the instance that is there.
        assert not is_ready


def test_a_pipe_in_place_of_a_marker_does_not_hang(bus):
    bus.open_endpoint("a").close()
    os.mkfifo(bus.path / "a" / "LEASE")
    refused(bus, "no regular file")


def test_ready_takes_names_of_one_part_that_fit(bus):
    with bus.open_endpoint("a") as endpoint:
        for bad in (["a/b"], [".."], ["LOCK"]):
            with pytest.raises(chronicle.BadArgument):
                endpoint.ready(bad)
        with pytest.raises(chronicle.BadArgument, match="marker too long"):
            endpoint.ready([f"queue{number}" for number in range(1_000)])
        assert names_in(endpoint.path) == ["LEASE", "LOCK"]


def test_an_endpoint_that_is_closed_is_free_though_a_child_has_its_descriptors(bus):
    endpoint = bus.open_endpoint("a")
    assert endpoint._lock is not None
    # As a child that was forked meanwhile has them, until it runs its program.
    childs = os.dup(endpoint._lock)
    endpoint.close()
    bus.open_endpoint("a").close()
    os.close(childs)


def test_the_markers_of_a_dead_owner_do_not_come_to_life_when_the_next_one_has_the_lock(bus):
    first = bus.open_endpoint("a")
    publisher(first.path / "q").close()
    first.ready(["q"])
    path = str(first.path / "q")
    assert bus.readiness(path) is not None
    # It is killed, and the next owner has got no further than the lock.
    first._release()
    directory = os.open(bus.path / "a", os.O_RDONLY)
    lock = take_lock(directory, "a")
    assert (bus.status("a").state, bus.status("a").reason) == ("dead", "lock free")
    assert bus.readiness(path) is None
    with pytest.raises(chronicle.EndpointActive):
        bus.open_endpoint("a")
    os.close(lock)
    os.close(directory)
    bus.open_endpoint("a").close()
