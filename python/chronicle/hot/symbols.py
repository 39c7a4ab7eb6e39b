"""Names for addresses of machine code in this process.

An address is looked for, in this order, in the ranges that `register_code` knows (compiled
handlers), in the dynamic linker's tables (``dladdr``), and, if pyelftools is installed (the extra
``hot``), in the symbol table and the line table of the object that is mapped there, which also name
what an object does not export.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import IO, cast

from chronicle.errors import BadArgument

__all__ = ["CallSite", "find_callers", "locate", "register_code", "unregister_code"]

LineOf = Callable[[int], tuple[str, int] | None]


@dataclass(frozen=True, slots=True)
class CallSite:
    """Where in the code an address is.

    Attributes
    ----------
    address
        In this process.
    symbol, offset
        The function, and the bytes from its start. If its name is not known, ``None`` and the bytes
        from where the object is loaded.
    object
        Path of the object file, or ``None`` for code that was made at run time.
    file, line
        Source, if the object tells.
    is_registered
        Whether the name comes from `register_code`.
    """

    address: int
    symbol: str | None = None
    offset: int = 0
    object: str | None = None
    file: str | None = None
    line: int | None = None
    is_registered: bool = False

    def __str__(self) -> str:
        name = PurePath(self.object).name if self.object else None
        if self.symbol:
            text = f"{self.symbol}+{self.offset:#x}" + (f" in {name}" if name else "")
        else:
            text = f"{name}+{self.offset:#x}" if name else f"{self.address:#x}"
        if self.file:
            text += f" ({self.file}:{self.line})" if self.line else f" ({self.file})"
        return text


# --- Code that was made at run time ---


@dataclass(frozen=True, slots=True)
class _Range:
    start: int
    stop: int
    name: str
    line_of: LineOf | None


_lock = threading.Lock()
_starts: list[int] = []
_ranges: list[_Range] = []


def register_code(start: int, size: int, name: str, *, line_of: LineOf | None = None) -> None:
    """Name a range of machine code, so that reports can name addresses in it.

    Any thread may call it. What overlaps was registered for code that is gone, and is forgotten.

    Parameters
    ----------
    start
        Address of the first byte.
    size
        Bytes, at least 1.
    name
        What to call it, for example ``"Ewma.trade"``.
    line_of
        Gives file and line for an offset from `start`, or ``None``. It is called by whoever reads
        a report.

    Examples
    --------
    >>> register_code(4096, 64, "Ewma.trade", line_of=lambda offset: ("ewma.py", 31))
    >>> str(locate(4100))
    'Ewma.trade+0x4 (ewma.py:31)'
    >>> unregister_code(4096)
    """
    if size < 1:
        raise BadArgument(f"bad size of code: found={size} expected=1 or more bytes")
    added = _Range(start, start + size, name, line_of)
    with _lock:
        _drop([r for r in _ranges if r.start < added.stop and start < r.stop])
        index = bisect.bisect(_starts, start)
        _starts.insert(index, start)
        _ranges.insert(index, added)


def unregister_code(start: int) -> None:
    """Forget the range that was registered with this start; nothing happens if there is none."""
    with _lock:
        _drop([r for r in _ranges if r.start == start])


def _drop(gone: Iterable[_Range]) -> None:
    for item in gone:
        index = _ranges.index(item)
        del _ranges[index], _starts[index]


def _registered(address: int) -> CallSite | None:
    with _lock:
        index = bisect.bisect(_starts, address) - 1
        found = _ranges[index] if index >= 0 else None
    if found is None or address >= found.stop:
        return None
    offset = address - found.start
    file, line = (found.line_of(offset) if found.line_of else None) or (None, None)
    return CallSite(address, found.name, offset, None, file, line, is_registered=True)


# --- Code of object files ---


class _DlInfo(ctypes.Structure):
    _fields_ = (
        ("path", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("start", ctypes.c_void_p),
    )


def locate(address: int) -> CallSite:
    """Find out what code an address belongs to. Reads files; never fails: unknown stays unknown.

    Parameters
    ----------
    address
        Of an instruction. For a return address, pass the byte before it if the line matters: the
        call may be the last instruction of its line.
    """
    if site := _registered(address):
        return site
    info = _dladdr(address)
    mapping = _mapping(address)
    path = mapping.path if mapping and mapping.path else None
    symbol, offset = None, 0
    if info and info.name:
        symbol, offset = info.name.decode(errors="replace"), address - (info.start or address)
    elif mapping:
        offset = address - ((info.base if info else None) or mapping.start)
    file, line = None, None
    if mapping and path and path.startswith("/") and (elf := _elf(path)):
        in_file = address - mapping.start + mapping.offset
        if symbol is None and (found := elf.symbol_at(in_file)):
            symbol, offset = found
        file, line = elf.line_at(in_file) or (None, None)
    return CallSite(address, symbol and _demangled(symbol), offset, path, file, line)


def _demangled(symbol: str) -> str:
    """Write a Rust symbol (legacy scheme) as its path, without the hash; others as they are."""
    rest = symbol.removeprefix("_ZN")
    parts: list[str] = []
    while rest != symbol and rest[:1].isdecimal():
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        start, stop = len(digits), len(digits) + int(digits)
        parts.append(rest[start:stop])
        rest = rest[stop:]
    is_rust = rest == "E" and len(parts) > 1 and len(parts[-1]) == 17 and parts[-1][0] == "h"
    return "::".join(parts[:-1]) if is_rust else symbol


def _dladdr(address: int) -> _DlInfo | None:
    info = _DlInfo()
    dladdr = ctypes.CDLL(None).dladdr
    dladdr.argtypes = [ctypes.c_void_p, ctypes.POINTER(_DlInfo)]
    return info if dladdr(address, ctypes.byref(info)) else None


@dataclass(frozen=True, slots=True)
class _Mapping:
    start: int
    stop: int
    executable: bool
    offset: int
    path: str


_SNAPSHOT_AGE_S_MAX = 1.0
_snapshot: tuple[float, list[_Mapping]] = (float("-inf"), [])


def _mappings() -> list[_Mapping]:
    """Return what this process has mapped, in ascending order: proc_pid_maps(5).

    A second old at most, so that a ring full of reports is not a file read for each.
    """
    global _snapshot  # noqa: PLW0603
    now = time.monotonic()
    taken, mappings = _snapshot
    if now - taken > _SNAPSHOT_AGE_S_MAX:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
        mappings = [_parse_mapping(line) for line in lines]
        _snapshot = now, mappings
    return mappings


def _parse_mapping(text: str) -> _Mapping:
    addresses, rights, offset, _device, _inode, *path = text.split(maxsplit=5)
    start, stop = (int(part, 16) for part in addresses.split("-"))
    name = path[0].removesuffix(" (deleted)") if path else ""
    return _Mapping(start, stop, "x" in rights, int(offset, 16), name)


def _mapping(address: int) -> _Mapping | None:
    mappings = _mappings()
    index = bisect.bisect(mappings, address, key=lambda m: m.start) - 1
    return mappings[index] if index >= 0 and address < mappings[index].stop else None


# Larger line tables are not read: it is done in Python, a second or so per MiB.
_LINES_BYTES_MAX = 1 << 20


class _Elf:
    """Symbols and lines of one object file, by offset in the file."""

    def __init__(self, path: str) -> None:
        from elftools.elf.elffile import ELFFile
        from elftools.elf.sections import SymbolTableSection

        # Mapped, because what is needed is little, and the file may be large.
        with Path(path).open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._file = ELFFile(cast(IO[bytes], content))
        self._segments = [
            (s["p_offset"], s["p_offset"] + s["p_filesz"], s["p_vaddr"])
            for s in self._file.iter_segments(type="PT_LOAD")
        ]
        functions = {
            (symbol["st_value"], symbol["st_size"], symbol.name)
            for section in self._file.iter_sections()
            if isinstance(section, SymbolTableSection)
            for symbol in section.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] != "SHN_UNDEF"
        }
        self._functions = sorted(functions)
        self._line_starts: list[int] | None = None
        self._lines: list[tuple[int, str, int] | None] = []

    def _virtual(self, in_file: int) -> int | None:
        for start, stop, at in self._segments:
            if start <= in_file < stop:
                return int(at + in_file - start)
        return None

    def symbol_at(self, in_file: int) -> tuple[str, int] | None:
        at = self._virtual(in_file)
        if at is None:
            return None
        index = bisect.bisect(self._functions, (at, 1 << 64, "")) - 1
        if index < 0:
            return None
        start, size, name = self._functions[index]
        return (name, at - start) if at < start + max(size, 1) else None

    def line_at(self, in_file: int) -> tuple[str, int] | None:
        at = self._virtual(in_file)
        if at is None:
            return None
        if self._line_starts is None:
            self._line_starts = []
            section = self._file.get_section_by_name(".debug_line")
            if section is not None and section.data_size <= _LINES_BYTES_MAX:
                self._read_lines()
        index = bisect.bisect(self._line_starts, at) - 1
        found = self._lines[index] if index >= 0 else None
        return (found[1], found[2]) if found else None

    def _read_lines(self) -> None:
        """Flatten the line tables of all units into one, sorted; ends of sequences are ``None``."""
        rows: list[tuple[int, int, tuple[int, str, int] | None]] = []
        dwarf = self._file.get_dwarf_info()
        for unit in dwarf.iter_CUs():
            program = dwarf.line_program_for_CU(unit)
            if program is None:
                continue
            files = program["file_entry"]
            # Files count from 1 up to DWARF 4, from 0 since.
            first = 0 if program["version"] >= 5 else 1
            for entry in program.get_entries():
                state = entry.state
                if state is None:
                    continue
                index = state.file - first
                name = files[index].name.decode(errors="replace") if index < len(files) else "?"
                row = None if state.end_sequence else (state.address, name, state.line)
                rows.append((state.address, 0 if row is None else 1, row))
        rows.sort(key=lambda row: row[:2])
        self._line_starts = [row[0] for row in rows]
        self._lines = [row[2] for row in rows]


@lru_cache(maxsize=32)
def _elf(path: str) -> _Elf | None:
    """Return the object's tables, or ``None``: no pyelftools, or nothing that it can read."""
    try:
        from elftools.common.exceptions import ELFError
    except ImportError:
        return None
    try:
        return _Elf(path)
    except (ELFError, OSError):
        return None


# --- Who called ---

_CALLERS_MAX = 16


def find_callers(stack: Iterable[int], call_site: CallSite) -> list[CallSite]:
    """Reconstruct who called the function at `call_site`, innermost first.

    The stack is a copy of words, without the registers that a real unwinder needs. Return
    addresses are among them, and so are left-overs of earlier calls. A word is a return address if
    it stands behind a call instruction. Of these the next caller is the first whose call goes to
    the function that was found last; or else the first that goes to the object of that function,
    which may then have been jumped to; or else the first whose target cannot be read from the code
    (a call through a register). So the result is likely, not certain. It ends with the first
    registered code.

    Parameters
    ----------
    stack
        Words from the stack pointer up.
    call_site
        Where the system call was made.
    """
    returns = []
    for word in stack:
        mapping = _mapping(word)
        if mapping and mapping.executable:
            code = _read_memory(max(word - 7, mapping.start), word)
            if _ends_in_a_call(code):
                returns.append((word, _call_target(word, code)))
    callers: list[CallSite] = []
    inner = call_site
    while returns and len(callers) < _CALLERS_MAX:
        index = _next_caller([target for _, target in returns], inner)
        # The byte before the return address is inside of the call.
        inner = locate(returns[index][0] - 1)
        callers.append(inner)
        if inner.is_registered:
            break
        del returns[: index + 1]
    return callers


def _next_caller(targets: list[int | None], inner: CallSite) -> int:
    entry = inner.address - inner.offset if inner.symbol else None
    if entry in targets and entry is not None:
        return targets.index(entry)
    for index, target in enumerate(targets):
        mapping = _mapping(target) if target is not None else None
        if mapping and inner.object and mapping.path == inner.object:
            return index
    return targets.index(None) if None in targets else 0


def _ends_in_a_call(code: bytes) -> bool:
    if platform.machine() == "aarch64":
        if len(code) < 4:
            return False
        word = int.from_bytes(code[-4:], "little")
        return word >> 26 == 0b100101 or word & 0xFFFFFC1F == 0xD63F0000  # BL, BLR
    if len(code) >= 5 and code[-5] == 0xE8:  # CALL rel32
        return True
    # FF /2: CALL of a register or of a word in memory, two to seven bytes long.
    return any(
        len(code) >= size and code[-size] == 0xFF and code[-size + 1] >> 3 & 7 == 2
        for size in (2, 3, 4, 6, 7)
    )


def _call_target(after: int, code: bytes) -> int | None:
    """Find out where a call goes, through a stub of the linker if need be. x86-64 only."""
    if platform.machine() != "x86_64":
        return None
    if code[-6:-4] == b"\xff\x15":  # CALL [rip + rel32]
        return _read_pointer(after + _signed(code[-4:]))
    if code[-5:-4] != b"\xe8":
        return None
    target = after + _signed(code[-4:])
    stub = _read_memory(target, target + 16).removeprefix(b"\xf3\x0f\x1e\xfa")  # ENDBR64
    at = target + (4 if len(stub) == 12 else 0)
    if stub.startswith(b"\xf2"):  # BND
        stub, at = stub[1:], at + 1
    if stub.startswith(b"\xff\x25"):  # JMP [rip + rel32]
        return _read_pointer(at + 6 + _signed(stub[2:6]))
    return target


def _signed(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _read_pointer(address: int) -> int | None:
    data = _read_memory(address, address + 8)
    return int.from_bytes(data, "little") if len(data) == 8 else None


def _read_memory(start: int, stop: int) -> bytes:
    """Read memory of this process; nothing, instead of a crash, if it is gone or not readable."""
    try:
        fd = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.pread(fd, stop - start, start)
    except (OSError, OverflowError):
        return b""
    finally:
        os.close(fd)
