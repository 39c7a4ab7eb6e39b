"""`chronicle doctor --host` against made-up trees: a host in order, and each fault by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import chronicle
import pytest
from chronicle.cli import main
from chronicle.cli.host import cores_text, examine_host, parse_cores
from hypothesis import given
from hypothesis import strategies as st

LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max open files            {nofile:<20} 1048576              files
Max locked memory         {memlock:<20} unlimited            bytes
Max realtime priority     {rtprio:<20} 99
"""
CPU = "sys/devices/system/cpu"
CLOCK = "sys/devices/system/clocksource/clocksource0"
PROTOCOLS = "protocol  size sockets\nPACKET    1344      2\nXDP       1024      0\nTCP 2 3\n"
MOUNTS = "proc /proc proc rw 0 0\ntmpfs /dev/shm tmpfs rw,nosuid{options} 0 0\n"

GOOD = {
    "proc/cmdline": "quiet isolcpus=managed_irq,domain,2-3 nohz_full=2-3 rcu_nocbs=2-3",
    "proc/self/status": "Name: x\nCapEff:\t000001ffffffffff\n",
    "proc/self/limits": LIMITS.format(nofile=65_536, memlock="unlimited", rtprio=50),
    "proc/self/mounts": MOUNTS.format(options=",size=16777216k"),
    "proc/swaps": "Filename Type Size Used Priority\n",
    "proc/net/protocols": PROTOCOLS,
    "proc/sys/kernel/osrelease": "6.8.0-generic",
    "proc/sys/kernel/numa_balancing": "0",
    "proc/sys/kernel/seccomp/actions_avail": "kill_process trap errno user_notif log allow",
    "proc/sys/vm/nr_hugepages": "512",
    "proc/sys/vm/max_map_count": "1048576",
    "proc/sys/fs/inotify/max_user_watches": "524288",
    "proc/sys/fs/inotify/max_user_instances": "1024",
    "proc/irq/1/effective_affinity_list": "0",
    "proc/irq/2/effective_affinity_list": "1",
    "proc/77/comm": "bash",
    f"{CPU}/online": "0-3",
    f"{CPU}/isolated": "2-3",
    **{f"{CPU}/cpu{core}/cpufreq/scaling_governor": "performance" for core in range(4)},
    **{f"{CPU}/cpu{core}/topology/thread_siblings_list": f"{core}" for core in range(4)},
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "sys/kernel/mm/ksm/run": "0",
    f"{CLOCK}/current_clocksource": "tsc",
    f"{CLOCK}/available_clocksource": "tsc hpet acpi_pm",
    "sys/fs/cgroup/cpu.max": "max 100000",
}
NO_CAPABILITIES = {"proc/self/status": "CapEff:\t0000000000000000\n"}


def make(root: Path, changes: Mapping[str, str | None]) -> Path:
    for name, text in {**GOOD, **changes}.items():
        if text is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text + "\n")
    return root


def test_a_host_in_order_has_nothing_wrong(tmp_path):
    report = examine_host(make(tmp_path, {}))
    assert report.findings == []
    assert report.facts["isolated"] == "2-3"
    assert report.facts["/dev/shm"] == "16 GiB"
    assert report.facts["clock source"] == "tsc"


@pytest.mark.parametrize(
    ("changes", "code", "cure"),
    [
        ({f"{CPU}/isolated": ""}, "not-isolated", "isolcpus=managed_irq,domain,2-3 nohz_full=2-3"),
        ({"proc/cmdline": "rcu_nocbs=2-3"}, "timer-tick", "nohz_full=2-3"),
        ({"proc/cmdline": "nohz_full=2-3 rcu_nocbs=2"}, "rcu-callbacks", "rcu_nocbs=2-3"),
        (
            {f"{CPU}/cpu2/topology/thread_siblings_list": "0,2"},
            "smt-sibling",
            "echo 0 | sudo tee /sys/devices/system/cpu/cpu0/online",
        ),
        (
            {f"{CPU}/cpu3/cpufreq/scaling_governor": "powersave"},
            "governor",
            "cpupower -c 3 frequency-set -g performance",
        ),
        (
            {"proc/irq/2/effective_affinity_list": "1,3"},
            "irq-affinity",
            "for irq in 2; do echo 0-1",
        ),
        ({"proc/77/comm": "irqbalance"}, "irqbalance", "IRQBALANCE_BANNED_CPULIST=2-3"),
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, "cpu-quota", "without a CPU limit"),
        (
            {"sys/kernel/mm/transparent_hugepage/enabled": "[always] madvise never"},
            "transparent-huge-pages",
            "echo madvise | sudo tee",
        ),
        ({"proc/sys/vm/nr_hugepages": "0"}, "no-huge-pages", "vm.nr_hugepages=512"),
        ({"sys/kernel/mm/ksm/run": "1"}, "ksm", "/sys/kernel/mm/ksm/run"),
        ({"proc/sys/kernel/numa_balancing": "1"}, "numa-balancing", "kernel.numa_balancing=0"),
        (
            {"proc/swaps": "Filename Type\n/dev/sda2 partition 8 0 -2\n"},
            "swap",
            "sudo swapoff -a",
        ),
        ({"proc/self/mounts": "proc /proc proc rw 0 0\n"}, "no-tmpfs", "mount -t tmpfs"),
        (
            {"proc/self/mounts": MOUNTS.format(options=",size=65536k")},
            "small-tmpfs",
            "remount,size=8G",
        ),
        ({f"{CLOCK}/current_clocksource": "hpet"}, "clock-source", "echo tsc | sudo tee"),
        (
            {f"{CLOCK}/current_clocksource": "hpet", f"{CLOCK}/available_clocksource": "hpet"},
            "clock-source",
            "invariant TSC",
        ),
        (
            {"proc/self/limits": LIMITS.format(nofile=1024, memlock="unlimited", rtprio=50)},
            "nofile",
            "LimitNOFILE=65536",
        ),
        ({"proc/sys/vm/max_map_count": "1000"}, "max_map_count", "vm.max_map_count="),
        (
            {"proc/sys/fs/inotify/max_user_watches": "100"},
            "max_user_watches",
            "fs.inotify.max_user_watches=",
        ),
        (
            {"proc/sys/fs/inotify/max_user_instances": "8"},
            "max_user_instances",
            "fs.inotify.max_user_instances=",
        ),
        ({"proc/sys/kernel/osrelease": "5.10.0"}, "old-kernel", "5.16"),
        ({"proc/net/protocols": "protocol\nXDP 1\n"}, "no-packet-sockets", "modprobe af_packet"),
        ({"proc/net/protocols": "protocol\nPACKET 1\n"}, "no-xdp", "CONFIG_XDP_SOCKETS"),
        (
            {"proc/sys/kernel/seccomp/actions_avail": "kill_process log"},
            "no-seccomp",
            "CONFIG_SECCOMP_FILTER",
        ),
        ({"proc/sys/kernel/seccomp/actions_avail": None}, "no-seccomp", "CONFIG_SECCOMP_FILTER"),
        (
            {f"{CPU}/online": "0-1", f"{CPU}/isolated": "", "proc/cmdline": "quiet"},
            "few-cores",
            "at least 4 cores",
        ),
    ],
)
def test_each_fault_is_found_alone_with_its_cure(tmp_path, changes, code, cure):
    (found,) = examine_host(make(tmp_path, changes)).findings
    assert found.code == code
    assert cure in (found.cure or "")


def test_limits_matter_to_those_without_the_capabilities(tmp_path):
    limits = {"proc/self/limits": LIMITS.format(nofile=65_536, memlock=8_388_608, rtprio=0)}
    assert examine_host(make(tmp_path / "root", limits)).findings == []
    found = examine_host(make(tmp_path / "user", {**limits, **NO_CAPABILITIES})).findings
    assert [finding.code for finding in found] == ["memlock", "rtprio", "no-net-raw"]
    assert "LimitMEMLOCK=infinity" in (found[0].cure or "")


def test_cores_that_are_meant_for_hot_threads_are_looked_at_whether_isolated_or_not(tmp_path):
    root = make(tmp_path, {"proc/irq/2/effective_affinity_list": "1"})
    found = examine_host(root, parse_cores("1-2")).findings
    assert [finding.code for finding in found] == ["not-isolated", "irq-affinity"]
    assert "on core 1: not isolated" in found[0].text


def test_cores_that_the_host_does_not_have_are_refused(tmp_path):
    with pytest.raises(chronicle.BadArgument, match="found='3-4' expected=some of 0-3"):
        examine_host(make(tmp_path, {}), parse_cores("3-4"))


def test_what_the_kernel_does_not_show_is_no_finding(tmp_path):
    report = examine_host(tmp_path)
    codes = {finding.code for finding in report.findings}
    # Without a single file nothing is known of the cores, the tmpfs, and the capabilities.
    assert codes == {"few-cores", "no-tmpfs", "no-net-raw"}


def test_garbage_in_these_files_is_no_crash(tmp_path):
    garbage = dict.fromkeys(GOOD, "\x00 - , \n ][ 99999999999999999999 -5")
    examine_host(make(tmp_path, garbage))
    for name in GOOD:
        (tmp_path / name).write_bytes(b"\xff\xfe")
    examine_host(tmp_path)


@given(st.frozensets(st.integers(0, 200), min_size=1))
def test_a_list_of_cores_is_read_as_it_is_written(cores):
    assert parse_cores(cores_text(cores)) == cores


@pytest.mark.parametrize("text", ["", "x", "1-", "-1", "1;2", "0-99999999999"])
def test_a_bad_list_of_cores_is_refused(text):
    with pytest.raises(chronicle.BadArgument, match="bad list of cores"):
        parse_cores(text)
    assert main(["doctor", "--host", f"--cores={text}"]) == 1


def test_the_command_shows_this_host(capsys):
    code = main(["doctor", "--host", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] == (code == 0)
    assert report["facts"]["kernel"] == os.uname().release
    assert main(["doctor", "--host"]) == code
    text = capsys.readouterr().out
    assert os.uname().release in text
    assert all(finding["cure"] for finding in report["findings"])
