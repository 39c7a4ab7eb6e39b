"""What `doctor --host` can find: what in a machine's set-up gets into the way of hot threads.

Reads ``/proc`` and ``/sys`` below a root that tests make up. What the kernel does not show (inside
of a container, on another architecture) is no finding. Cures are commands; those that do not
outlive a reboot say so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from chronicle.cli.findings import Finding
from chronicle.cli.output import bytes_text
from chronicle.errors import BadArgument

__all__ = ["HostReport", "examine_host", "parse_cores"]

_CPU = "sys/devices/system/cpu"
#: Clock sources that are read in user space, without a system call.
_FAST_CLOCKS = frozenset({"tsc", "arch_sys_counter", "kvm-clock", "hyperv_clocksource_tsc_page"})
#: Capabilities by their bit, see capabilities(7).
_CAP_NET_RAW, _CAP_IPC_LOCK, _CAP_SYS_NICE = 13, 14, 23
_NOFILE_MIN = 4_096
_MEMLOCK_MIN = 1 << 30
_SHM_MIN = 1 << 30
_WATCHES_MIN = 8_192
_SEGMENTS_MANY = 65_530
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass
class HostReport:
    """What was found.

    Attributes
    ----------
    facts
        Name and value of what was looked at.
    findings
        Worst first.
    """

    facts: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


class _Host:
    """Files below a root, and the cores that hot threads are meant for."""

    def __init__(self, root: Path, wanted: frozenset[int] | None) -> None:
        self.root = root
        self.facts: dict[str, str] = {}
        self.online = _cores_of(self.text(f"{_CPU}/online") or "")
        self.isolated = _cores_of(self.text(f"{_CPU}/isolated") or "")
        self.is_told = wanted is not None
        self.hot = self.isolated if wanted is None else wanted

    def text(self, path: str) -> str | None:
        """Return a file's text; ``None`` if there is none, or it is not for us."""
        try:
            return (self.root / path).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None

    def number(self, path: str) -> int | None:
        """Return the number in a file."""
        text = self.text(path)
        return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None

    def files(self, pattern: str) -> list[Path]:
        """Return what matches, in order."""
        return sorted(self.root.glob(pattern))

    def has_capability(self, bit: int) -> bool:
        """Whether this process may do what a capability allows."""
        found = re.search(
            r"^CapEff:\s*([0-9a-f]+)", self.text("proc/self/status") or "", re.MULTILINE
        )
        return found is not None and bool(int(found[1], 16) >> bit & 1)

    def sysctl(self, name: str) -> int | None:
        """Return a setting of the kernel."""
        return self.number("proc/sys/" + name.replace(".", "/"))


def parse_cores(text: str) -> frozenset[int]:
    """Read a list of cores, as the kernel writes it.

    >>> sorted(parse_cores("0,2-4"))
    [0, 2, 3, 4]
    """
    cores: set[int] = set()
    for part in text.split(","):
        found = _RANGE.fullmatch(part.strip())
        if found is None or int(found[2] or found[1]) - int(found[1]) > 1 << 16:
            raise BadArgument(f"bad list of cores: found={text!r} expected=for example 2-3,6")
        cores |= set(range(int(found[1]), int(found[2] or found[1]) + 1))
    return frozenset(cores)


def cores_text(cores: Iterable[int]) -> str:
    """Return a list of cores as the kernel writes it.

    >>> cores_text([0, 2, 3, 4])
    '0,2-4'
    """
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def examine_host(root: Path, wanted: frozenset[int] | None = None) -> HostReport:
    """Run all checks.

    Parameters
    ----------
    root
        Where ``proc`` and ``sys`` are.
    wanted
        Cores that are meant for hot threads; by default those that are isolated.

    Raises
    ------
    BadArgument
        If the machine does not have one of them.
    """
    host = _Host(root, wanted)
    if wanted is not None and host.online and not wanted <= host.online:
        raise BadArgument(
            f"bad list of cores: found={cores_text(wanted)!r} expected=some of "
            f"{cores_text(host.online)}: there are no others here"
        )
    order = ("error", "warning", "note")
    found = [finding for check in CHECKS for finding in check(host)]
    found.sort(key=lambda finding: order.index(finding.severity))
    return HostReport(host.facts, found)


def _persist(setting: str) -> str:
    """Return the command for a setting of the kernel, now and after a reboot."""
    name = setting.partition("=")[0]
    file = f"/etc/sysctl.d/60-{name.replace('.', '-').replace('_', '-')}.conf"
    return f"echo '{setting}' | sudo tee {file} && sudo sysctl -p {file}"


def _boot(arguments: str) -> str:
    return (
        f"add to the kernel's command line (GRUB_CMDLINE_LINUX in /etc/default/grub), "
        f"then update-grub and reboot: {arguments}"
    )


# --- Cores ---


def check_isolation(host: _Host) -> Iterator[Finding]:
    """Look whether the kernel keeps other work off the hot cores."""
    command_line = host.text("proc/cmdline") or ""
    host.facts["cores"] = cores_text(host.online) or "unknown"
    host.facts["isolated"] = cores_text(host.isolated) or "none"
    if len(host.online) < 3:
        text = f"{len(host.online)} cores: too few to give one to a hot thread alone"
        cure = "use wait='hybrid' or 'sleep', or a machine with at least 4 cores"
        yield Finding("note", "few-cores", text, cure)
        if not host.is_told:
            return
    wanted = host.hot or frozenset(sorted(host.online)[len(host.online) // 2 :])
    cores = cores_text(wanted)
    missing = host.hot - host.isolated if host.hot else wanted
    if missing:
        text = f"the scheduler puts other threads on {_cores_named(missing)}: not isolated"
        cure = _boot(f"isolcpus=managed_irq,domain,{cores} nohz_full={cores} rcu_nocbs={cores}")
        yield Finding("warning", "not-isolated", text, cure)
        return
    for name, code, what in (
        ("nohz_full", "timer-tick", "interrupts them at each tick"),
        ("rcu_nocbs", "rcu-callbacks", "does its RCU work on them"),
    ):
        found = re.search(rf"(?:^|\s){name}=(\S+)", command_line)
        covered = _cores_of(found[1]) if found else frozenset()
        if host.hot - covered:
            text = f"not in {name}: {_cores_named(host.hot - covered)}: the kernel"
            what = (
                "interrupts them at each tick" if code == "timer-tick" else "works on them for RCU"
            )
            yield Finding("warning", code, f"{text} {what}", _boot(f"{name}={cores}"))


def _cores_named(cores: Iterable[int]) -> str:
    text = cores_text(cores)
    return f"core {text}" if text.isdigit() else f"cores {text}"


def _cores_of(text: str) -> frozenset[int]:
    try:
        return parse_cores(text)
    except BadArgument:
        return frozenset()


def check_siblings(host: _Host) -> Iterator[Finding]:
    """Look whether a hot core shares its execution units."""
    for core in sorted(host.hot):
        text = host.text(f"{_CPU}/cpu{core}/topology/thread_siblings_list")
        others = _cores_of(text or "") - {core}
        if others & host.online:
            sibling = min(others & host.online)
            found = f"core {core} shares its execution units with core {sibling}"
            cure = f"echo 0 | sudo tee /{_CPU}/cpu{sibling}/online (until the next boot)"
            yield Finding("note", "smt-sibling", found, cure)


def check_governor(host: _Host) -> Iterator[Finding]:
    """Look whether cores run at full speed."""
    slow: dict[str, set[int]] = {}
    files = host.files(f"{_CPU}/cpu[0-9]*/cpufreq/scaling_governor")
    for file in files:
        core = int(file.parts[-3].removeprefix("cpu"))
        governor = host.text(str(file.relative_to(host.root))) or ""
        if governor != "performance" and (not host.hot or core in host.hot):
            slow.setdefault(governor, set()).add(core)
    host.facts["governor"] = ", ".join(slow) or ("performance" if files else "not shown")
    for governor, cores in slow.items():
        text = f"governor '{governor}' changes the frequency of {_cores_named(cores)}"
        cure = f"sudo cpupower -c {cores_text(cores)} frequency-set -g performance"
        yield Finding("warning", "governor", text, f"{cure} (until the next boot)")


def check_interrupts(host: _Host) -> Iterator[Finding]:
    """Look whether devices interrupt hot cores."""
    hit: dict[str, frozenset[int]] = {}
    for file in host.files("proc/irq/[0-9]*/effective_affinity_list"):
        number = file.parts[-2]
        goes_to = host.text(f"proc/irq/{number}/effective_affinity_list")
        if hot := _cores_of(goes_to or "") & host.hot:
            hit[number] = hot
    host.facts["interrupts on hot cores"] = str(len(hit))
    if hit:
        rest = cores_text(host.online - host.hot) or "0"
        names = ", ".join(list(hit)[:5]) + (f" and {len(hit) - 5} more" if len(hit) > 5 else "")
        text = f"interrupts may come to {_cores_named(frozenset().union(*hit.values()))}: {names}"
        cure = (
            f"for irq in {' '.join(hit)}; do echo {rest} | sudo tee "
            "/proc/irq/$irq/smp_affinity_list; done (until the next boot; kernel threads of some "
            "devices refuse it)"
        )
        yield Finding("warning", "irq-affinity", text, cure)
    if host.hot and any(
        host.text(str(file.relative_to(host.root))) == "irqbalance"
        for file in host.files("proc/[0-9]*/comm")
    ):
        text = "irqbalance runs, and moves interrupts to whatever core it likes"
        banned = cores_text(host.hot)
        cure = (
            f"echo IRQBALANCE_BANNED_CPULIST={banned} | sudo tee -a /etc/default/irqbalance && "
            "sudo systemctl restart irqbalance"
        )
        yield Finding("note", "irqbalance", text, cure)


def check_quota(host: _Host) -> Iterator[Finding]:
    """Look whether a control group takes the processor away."""
    text = host.text("sys/fs/cgroup/cpu.max")
    quota = text.split()[0] if text else "max"
    if quota != "max":
        found = f"a quota of the control group takes the processor away: cpu.max = {text}"
        cure = "start it without a CPU limit (docker: no --cpus; Kubernetes: no CPU limit)"
        yield Finding("warning", "cpu-quota", found, cure)


# --- Memory ---


def check_huge_pages(host: _Host) -> Iterator[Finding]:
    """Look whether the kernel merges and splits pages behind a hot thread's back."""
    text = host.text("sys/kernel/mm/transparent_hugepage/enabled") or ""
    found = re.search(r"\[(\w+)\]", text)
    host.facts["transparent huge pages"] = found[1] if found else "not shown"
    if found and found[1] == "always":
        what = "transparent huge pages are 'always': the kernel moves pages of hot threads to merge"
        file = "/sys/kernel/mm/transparent_hugepage/enabled"
        cure = f"echo madvise | sudo tee {file} (until the next boot)"
        yield Finding("warning", "transparent-huge-pages", what, cure)
    pages = host.sysctl("vm.nr_hugepages")
    host.facts["huge pages"] = "not shown" if pages is None else str(pages)
    if pages == 0:
        what = "no huge pages are reserved: queues on a hugetlbfs need them; a tmpfs does not"
        yield Finding("note", "no-huge-pages", what, _persist("vm.nr_hugepages=512"))
    if host.number("sys/kernel/mm/ksm/run"):
        what = "the kernel merges equal pages (KSM): the next store into one faults"
        cure = "echo 2 | sudo tee /sys/kernel/mm/ksm/run (until the next boot)"
        yield Finding("warning", "ksm", what, cure)
    if host.sysctl("kernel.numa_balancing"):
        what = (
            "the kernel moves memory between NUMA nodes, and makes pages fault to see who uses them"
        )
        yield Finding("warning", "numa-balancing", what, _persist("kernel.numa_balancing=0"))


def check_swap(host: _Host) -> Iterator[Finding]:
    """Look whether pages of queues may be written to a disk."""
    lines = (host.text("proc/swaps") or "").splitlines()[1:]
    devices = [line.split()[0] for line in lines if line.split()]
    host.facts["swap"] = ", ".join(devices) or "none"
    if devices:
        text = f"swap is on ({', '.join(devices)}): pages of a tmpfs may go there, and fault"
        cure = "sudo swapoff -a, and remove it from /etc/fstab; or mount the tmpfs with noswap"
        yield Finding("warning", "swap", text, cure)


def check_tmpfs(host: _Host) -> Iterator[Finding]:
    """Look whether there is a place for the hot tier."""
    mount = None
    for line in (host.text("proc/self/mounts") or "").splitlines():
        fields = line.split()
        if len(fields) >= 4 and fields[1] == "/dev/shm":
            mount = fields
    if mount is None or mount[2] != "tmpfs":
        host.facts["/dev/shm"] = "none"
        text = "there is no tmpfs at /dev/shm for the hot queues"
        cure = "sudo mount -t tmpfs -o size=50%,mode=1777 tmpfs /dev/shm, and add it to /etc/fstab"
        yield Finding("warning", "no-tmpfs", text, cure)
        return
    size = re.search(r"(?:^|,)size=(\d+)([kmg]?)", mount[3])
    size_bytes = int(size[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[size[2]] if size else None
    host.facts["/dev/shm"] = "half of the memory" if size_bytes is None else bytes_text(size_bytes)
    if size_bytes is not None and size_bytes < _SHM_MIN:
        text = f"/dev/shm has room for {bytes_text(size_bytes)}"
        cure = "sudo mount -o remount,size=8G /dev/shm (docker: --shm-size=8g)"
        yield Finding("warning", "small-tmpfs", text, cure)


# --- Clock ---


def check_clock(host: _Host) -> Iterator[Finding]:
    """Look whether the time is read without a system call."""
    base = "sys/devices/system/clocksource/clocksource0"
    current = host.text(f"{base}/current_clocksource")
    host.facts["clock source"] = current or "not shown"
    if current is None or current in _FAST_CLOCKS:
        return
    text = f"the clock source is '{current}': each look at the time is a system call"
    if "tsc" in (host.text(f"{base}/available_clocksource") or "").split():
        cure = f"echo tsc | sudo tee /{base}/current_clocksource; for good: " + _boot(
            "clocksource=tsc tsc=reliable"
        )
    else:
        cure = _boot("tsc=reliable") + "; in a virtual machine, let the host offer an invariant TSC"
    yield Finding("warning", "clock-source", text, cure)


# --- Limits ---


def check_limits(host: _Host) -> Iterator[Finding]:
    """Look what this process may lock, open, and how it may be scheduled."""
    limits = _limits(host.text("proc/self/limits") or "")
    where = "in /etc/security/limits.d/chronicle.conf, then log in again; systemd:"
    memlock = limits.get("Max locked memory")
    host.facts["locked memory"] = _limit_text(memlock, bytes_text)
    if memlock is not None and memlock < _MEMLOCK_MIN and not host.has_capability(_CAP_IPC_LOCK):
        text = f"only {bytes_text(memlock)} may be locked: lock_memory=True will be refused"
        cure = f"'* - memlock unlimited' {where} LimitMEMLOCK=infinity"
        yield Finding("warning", "memlock", text, cure)
    priority = limits.get("Max realtime priority")
    host.facts["realtime priority"] = _limit_text(priority, str)
    if priority == 0 and not host.has_capability(_CAP_SYS_NICE):
        text = "threads may have no realtime priority: fifo_priority= will be refused"
        yield Finding("note", "rtprio", text, f"'* - rtprio 50' {where} LimitRTPRIO=50")
    files = limits.get("Max open files")
    host.facts["open files"] = _limit_text(files, str)
    if files is not None and files < _NOFILE_MIN:
        text = f"only {files:,} files may be open: a reader takes 3, a writer 4"
        yield Finding("warning", "nofile", text, f"'* - nofile 65536' {where} LimitNOFILE=65536")
    for name, least, what in (
        ("fs.inotify.max_user_watches", _WATCHES_MIN, "directories can be watched"),
        ("fs.inotify.max_user_instances", 128, "discoveries can watch"),
        ("vm.max_map_count", _SEGMENTS_MANY, "segments can be mapped by a process"),
    ):
        value = host.sysctl(name)
        if value is not None and value < least:
            text = f"only {value:,} {what}: {name}"
            yield Finding("warning", name.rpartition(".")[2], text, _persist(f"{name}={8 * least}"))


def _limits(text: str) -> dict[str, int | None]:
    """Read the soft limits; ``None`` is unlimited."""
    limits: dict[str, int | None] = {}
    for line in text.splitlines():
        found = re.match(r"(Max [a-z ]+?)\s{2,}(\d+|unlimited)\s", line)
        if found:
            limits[found[1]] = None if found[2] == "unlimited" else int(found[2])
    return limits


def _limit_text(value: int | None, show: Callable[[int], str]) -> str:
    return "unlimited or not shown" if value is None else show(value)


# --- What the kernel can do ---


def check_kernel(host: _Host) -> Iterator[Finding]:
    """Look whether the kernel has what packet rings, the guard, and fan-ins need."""
    release = host.text("proc/sys/kernel/osrelease") or ""
    host.facts["kernel"] = release or "not shown"
    version = re.match(r"(\d+)\.(\d+)", release)
    if version and (int(version[1]), int(version[2])) < (5, 16):
        text = f"kernel {release} has no futex_waitv: a fan-in cannot sleep on many sources"
        yield Finding("warning", "old-kernel", text, "install kernel 5.16 or newer")
    rows = (host.text("proc/net/protocols") or "").splitlines()[1:]
    protocols = {row.split()[0] for row in rows if row.split()}
    host.facts["packet sockets"] = "yes" if "PACKET" in protocols else "no"
    host.facts["AF_XDP"] = "yes" if "XDP" in protocols else "no"
    if protocols and "PACKET" not in protocols:
        text = "the kernel has no packet sockets (yet): packet rings cannot be opened"
        yield Finding("warning", "no-packet-sockets", text, "sudo modprobe af_packet")
    if protocols and "XDP" not in protocols:
        text = "the kernel has no AF_XDP sockets: packet rings use AF_PACKET"
        yield Finding("note", "no-xdp", text, "a kernel with CONFIG_XDP_SOCKETS=y")
    if not host.has_capability(_CAP_NET_RAW):
        text = "this process may not open packet rings: no CAP_NET_RAW"
        cure = "sudo setcap cap_net_raw+ep on a copy of the interpreter; systemd: "
        cure += "AmbientCapabilities=CAP_NET_RAW"
        yield Finding("note", "no-net-raw", text, cure)
    actions = host.text("proc/sys/kernel/seccomp/actions_avail")
    host.facts["seccomp"] = "not shown" if actions is None else actions
    if actions is not None and not {"trap", "errno", "allow"} <= set(actions.split()):
        text = f"seccomp cannot trap (it has: {actions}): the guard of hot threads is off"
        yield Finding("warning", "no-seccomp", text, "a kernel with CONFIG_SECCOMP_FILTER=y")
    if actions is None and release:
        text = "the kernel shows no seccomp filters: the guard of hot threads may be off"
        yield Finding("note", "no-seccomp", text, "a kernel with CONFIG_SECCOMP_FILTER=y")


CHECKS: tuple[Callable[[_Host], Iterator[Finding]], ...] = (
    check_isolation,
    check_siblings,
    check_governor,
    check_interrupts,
    check_quota,
    check_huge_pages,
    check_swap,
    check_tmpfs,
    check_clock,
    check_limits,
    check_kernel,
)
