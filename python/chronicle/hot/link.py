"""From an object file to addresses, by LLVM's linker. Imports llvmlite, and never Numba.

Each object gets a library of its own, with the addresses of the symbols that it asks for, as the
machine net found them. One that is not on the list is refused here once more.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Final

from chronicle.errors import CompileError

__all__ = [
    "ALLOWED_SYMBOLS",
    "ENTRIES",
    "LIBM",
    "MEMORY",
    "Linked",
    "cpu",
    "link",
    "missing",
    "target_machine",
]

ENTRIES: Final = ("on_message", "on_idle", "on_start", "on_stop")
"""What an object may define for the loop; the symbols are these with ``chr_`` before."""

CORE: Final = frozenset({"chr_hot_append", "chr_hot_log"})
"""Functions of the core that compiled handlers may call."""

LIBM: Final = frozenset(
    {
        *("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "cos"),
        *("cosh", "erf", "erfc", "exp", "expm1", "floor", "fmod", "log", "log10", "log1p"),
        *("log2", "pow", "rint", "sin", "sinh", "sqrt", "tan", "tanh", "trunc"),
    }
)
"""Functions of the mathematical library that compiled handlers may call."""

MEMORY: Final = frozenset({"memcmp", "memcpy", "memmove", "memset", "bcmp"})
"""Functions that move or compare bytes, which compilers put in on their own."""

ALLOWED_SYMBOLS: Final = CORE | LIBM | MEMORY
"""All that compiled handlers may call."""

_lock: Final = threading.RLock()
_numbers: Final = itertools.count(1)
_machine: list[tuple[Any, Any]] = []


class Linked:
    """Code in memory, for as long as this object lives.

    Attributes
    ----------
    addresses
        By the names in `ENTRIES`, 0 for what the object does not have.
    """

    __slots__ = ("_tracker", "addresses")

    def __init__(self, tracker: Any, addresses: dict[str, int]) -> None:
        self._tracker = tracker
        self.addresses = addresses


def _llvm() -> Any:
    try:
        import llvmlite.binding as llvm
    except ImportError as error:
        raise missing(error) from None
    return llvm


def missing(error: ImportError) -> CompileError:
    """Return what to say if a part of the extra ``hot`` is not there."""
    return CompileError(f"compiled handlers need {error.name}; install chronicle-python[hot]")


def cpu() -> tuple[str, str]:
    """Return the processor's name and features, as LLVM has them."""
    llvm = _llvm()
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


def target_machine() -> Any:
    """Return LLVM's description of this machine. One, for the whole process."""
    return _jit()[0]


def _jit() -> tuple[Any, Any]:
    with _lock:
        if not _machine:
            llvm = _llvm()
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            name, features = cpu()
            machine = llvm.Target.from_default_triple().create_target_machine(
                # Small and relative code: calls stand there by name, for the audit to see.
                cpu=name,
                features=features,
                opt=3,
                reloc="pic",
                codemodel="small",
            )
            _machine.append((machine, llvm.create_lljit_compiler(machine)))
        return _machine[0]


def core_symbols() -> dict[str, int]:
    """Return the addresses of the core's functions."""
    from chronicle import _core

    found: dict[str, int] = dict(_core.hot_symbols())
    return found


def link(
    image: bytes,
    *,
    undefined: Iterable[str],
    entries: Iterable[str],
    symbols: Mapping[str, int] | None = None,
) -> Linked:
    """Load an object file.

    Parameters
    ----------
    image
        The object file's bytes.
    undefined
        Symbols that it asks for.
    entries
        Which of `ENTRIES` it defines.
    symbols
        Addresses of the core's functions; by default the core's own.

    Raises
    ------
    CompileError
        If it asks for a symbol that is not allowed, or cannot be linked.
    """
    wanted = sorted(undefined)
    unknown = [name for name in wanted if name not in ALLOWED_SYMBOLS]
    if unknown:
        raise CompileError(f"object file calls what is not allowed: {', '.join(unknown)}")
    with _lock:
        llvm = _llvm()
        _, jit = _jit()
        builder = llvm.JITLibraryBuilder().add_object_img(image)
        for name, address in _addresses(wanted, symbols).items():
            builder.import_symbol(name, address)
        defined = list(entries)
        for name in defined:
            builder.export_symbol(f"chr_{name}")
        try:
            tracker = builder.link(jit, f"chronicle.{next(_numbers)}")
        except RuntimeError as error:
            raise CompileError(f"object file cannot be linked: {error}") from None
    found = {name: tracker[f"chr_{name}"] if name in defined else 0 for name in ENTRIES}
    return Linked(tracker, found)


def _addresses(names: list[str], symbols: Mapping[str, int] | None) -> dict[str, int]:
    core: Mapping[str, int] | None = symbols
    libm = libc = None
    found: dict[str, int] = {}
    for name in names:
        if name in CORE:
            core = core_symbols() if core is None else core
            found[name] = core[name]
        elif name in LIBM:
            # The very functions that Python's own `math` calls.
            libm = libm or ctypes.CDLL("libm.so.6")
            found[name] = _address(libm, name)
        else:
            libc = libc or ctypes.CDLL(None)
            found[name] = _address(libc, name)
    return found


def _address(library: ctypes.CDLL, name: str) -> int:
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert address is not None  # A function has an address.
    return address
