"""`Program`: what a hot thread runs, whatever it was made from.

Three things become one: a compiled `chronicle.Handler`, functions in machine code that somebody
else has made (`NativeHandler`), and a plain Python callable. The last two are *unaudited*: nobody
has looked at what they can reach.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from chronicle.errors import BadArgument
from chronicle.values import Value

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "TABLE_BATCHED",
    "TABLE_UNAUDITED",
    "TABLE_USES_CLOCK",
    "LogSite",
    "NativeHandler",
    "Program",
    "as_program",
    "callable_program",
    "handler_path",
    "import_handler",
]

TABLE_USES_CLOCK: Final = 1
"""The loop samples the clock before each call."""
TABLE_UNAUDITED: Final = 2
"""Nobody has looked at what the code can reach."""
TABLE_BATCHED: Final = 4
"""The loop calls `on_batch_begin` and `on_batch_end` around the messages of a turn."""

_CTYPES_FUNCTION: Final[type] = ctypes.CFUNCTYPE(None).__mro__[1]
#: A function in machine code: its address, a ctypes function, or a capsule that holds the address.
Function: TypeAlias = Any


class LogSite(Value):
    """One log call of a handler.

    Parameters
    ----------
    level
        As in `logging`.
    format
        A `str.format` string with positional fields.
    file, line
        Where the call stands.
    """

    __slots__ = ("level", "format", "file", "line")  # noqa: RUF023  (the order of the fields)
    level: int
    format: str
    file: str
    line: int

    def __init__(self, level: int, format: str, file: str = "", line: int = 0) -> None:  # noqa: A002
        self._set(level, format, file, line)


class Program(Value):
    """Everything that a hot thread needs to know about its handler.

    Parameters
    ----------
    name
        For people, and the default name of the thread.
    flags
        ``TABLE_*``.
    on_message, on_idle, on_start, on_stop, on_batch_begin, on_batch_end
        Addresses of functions of the C ABI; 0 is none.
    state
        The initial state record.
    outputs, counters
        Names; a number in compiled code is an index here.
    log_sites
        By their number.
    audited
        Whether the machine code was audited.
    explain
        Makes text of what a failed handler has left in its context: `fail_info`, `fail_code`.
    state_dtype
        How to show the state, or a function that says so, which is called whenever it is looked at
        (types need NumPy, and starting does not); ``None``: as bytes.
    keep_alive
        Whatever owns the machine code.
    key
        Of the compiler's cache: names this very code in a journal.
    callable
        A Python callable, for a program that has no functions.
    """

    __slots__ = (  # noqa: RUF023  (the order of the fields)
        "name",
        "flags",
        "on_message",
        "on_idle",
        "on_start",
        "on_stop",
        "on_batch_begin",
        "on_batch_end",
        "state",
        "outputs",
        "counters",
        "log_sites",
        "audited",
        "explain",
        "state_dtype",
        "keep_alive",
        "key",
        "callable",
    )
    name: str
    flags: int
    on_message: int
    on_idle: int
    on_start: int
    on_stop: int
    on_batch_begin: int
    on_batch_end: int
    state: bytes
    outputs: tuple[str, ...]
    counters: tuple[str, ...]
    log_sites: tuple[LogSite, ...]
    audited: bool
    explain: Callable[[int, int], str] | None
    state_dtype: np.dtype[Any] | Callable[[], np.dtype[Any]] | None
    keep_alive: object
    key: str
    callable: Callable[[Any], object] | None

    def __init__(
        self,
        name: str,
        *,
        flags: int = 0,
        on_message: int = 0,
        on_idle: int = 0,
        on_start: int = 0,
        on_stop: int = 0,
        on_batch_begin: int = 0,
        on_batch_end: int = 0,
        state: bytes = b"",
        outputs: tuple[str, ...] = (),
        counters: tuple[str, ...] = (),
        log_sites: tuple[LogSite, ...] = (),
        audited: bool = False,
        explain: Callable[[int, int], str] | None = None,
        state_dtype: np.dtype[Any] | Callable[[], np.dtype[Any]] | None = None,
        keep_alive: object = None,
        key: str = "",
        callable: Callable[[Any], object] | None = None,  # noqa: A002
    ) -> None:
        self._set(
            name,
            flags,
            on_message,
            on_idle,
            on_start,
            on_stop,
            on_batch_begin,
            on_batch_end,
            bytes(state),
            tuple(outputs),
            tuple(counters),
            tuple(log_sites),
            audited,
            explain,
            state_dtype,
            keep_alive,
            key,
            callable,
        )

    def dtype_of_state(self) -> np.dtype[Any] | None:
        """Return how to show the state; ``None``: as bytes."""
        found = self.state_dtype
        return found() if callable(found) else found

    @property
    def addresses(self) -> tuple[int, int, int, int, int, int]:
        """The functions, in the order of the core's table."""
        return (
            self.on_message,
            self.on_idle,
            self.on_start,
            self.on_stop,
            self.on_batch_begin,
            self.on_batch_end,
        )


class NativeHandler:
    """A handler whose functions are machine code that was made elsewhere: C, Cython, Rust.

    The functions have the C ABI of ``docs/internals/hot-thread.md``: ``on_message(context,
    message)``, the others ``(context)``, all returning an ``int32``: 0 handled, 1 not for me,
    2 failed. They run on the hot thread and must not use the interpreter. They are not audited; the
    guard still watches them.

    Parameters
    ----------
    on_message, on_idle, on_start, on_stop, on_batch_begin, on_batch_end
        Each an address, a ctypes function, or a capsule whose pointer is the function.
    state
        The initial state record: bytes, a structured NumPy record, or a number of zero bytes.
    outputs, counters
        Names, by index.
    log_sites
        `LogSite` of each number that `chr_hot_log` is called with.
    uses_clock
        Sample the clock before each call.
    batched
        Call `on_batch_begin` and `on_batch_end` around the messages of a turn.
    name
        For people.

    Examples
    --------
    >>> import chronicle, ctypes
    >>> handler = chronicle.NativeHandler(
    ...     on_message=ctypes.CDLL(None).abs,  # a function with the right signature in earnest
    ...     counters=("seen",),
    ...     state=16,
    ...     name="from-c",
    ... )
    >>> chronicle.HotThread(handler).name
    'from-c'
    """

    def __init__(
        self,
        on_message: Function = 0,
        *,
        on_idle: Function = 0,
        on_start: Function = 0,
        on_stop: Function = 0,
        on_batch_begin: Function = 0,
        on_batch_end: Function = 0,
        state: Any = b"",
        outputs: tuple[str, ...] = (),
        counters: tuple[str, ...] = (),
        log_sites: tuple[LogSite, ...] = (),
        uses_clock: bool = False,
        batched: bool = False,
        name: str = "native",
    ) -> None:
        functions = {
            "on_message": on_message,
            "on_idle": on_idle,
            "on_start": on_start,
            "on_stop": on_stop,
            "on_batch_begin": on_batch_begin,
            "on_batch_end": on_batch_end,
        }
        addresses = {name: _address(name, found) for name, found in functions.items()}
        if isinstance(state, int):
            state = bytes(state)
        flags = TABLE_UNAUDITED
        flags |= TABLE_USES_CLOCK if uses_clock else 0
        flags |= TABLE_BATCHED if batched else 0
        self.program: Program = Program(
            name,
            flags=flags,
            state=bytes(state),
            outputs=tuple(outputs),
            counters=tuple(counters),
            log_sites=tuple(log_sites),
            state_dtype=getattr(state, "dtype", None),
            keep_alive=functions,
            on_message=addresses["on_message"],
            on_idle=addresses["on_idle"],
            on_start=addresses["on_start"],
            on_stop=addresses["on_stop"],
            on_batch_begin=addresses["on_batch_begin"],
            on_batch_end=addresses["on_batch_end"],
        )


def _address(name: str, found: Function) -> int:
    """Return the address of a function, however it was given."""
    if isinstance(found, int) and not isinstance(found, bool):
        if not 0 <= found < 1 << 64:
            raise BadArgument(f"bad {name}: found={found:#x} expected=an address")
        return found
    # The base of what libraries and prototypes make; it has no public name.
    if isinstance(found, _CTYPES_FUNCTION):
        function: Any = found
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    if type(found).__name__ == "PyCapsule":
        return _capsule_pointer(found)
    raise BadArgument(
        f"bad {name}: found={type(found).__name__} "
        "expected=an address, a ctypes function or a PyCapsule"
    )


def _capsule_pointer(capsule: object) -> int:
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    return get_pointer(capsule, get_name(capsule)) or 0


def callable_program(function: Callable[[Any], object]) -> Program:
    """Return the program of a plain Python callable, which is called with each `Message`.

    It takes the interpreter lock once per batch of messages; see the docs for what that costs.
    """
    return Program(
        getattr(function, "__name__", type(function).__name__),
        flags=TABLE_UNAUDITED | TABLE_BATCHED,
        keep_alive=function,
        callable=function,
    )


def as_program(handler: Any) -> Program:
    """Return the program of whatever may be a handler.

    Compiles a `chronicle.Handler` (cached); takes a `Program` or a `NativeHandler` as it is; wraps
    any other callable.

    Raises
    ------
    BadArgument
        If it is none of these.
    """
    if isinstance(handler, Program):
        return handler
    if isinstance(handler, NativeHandler):
        return handler.program
    if getattr(handler, "__chronicle_handler__", None) is not None:
        if isinstance(handler, type):
            raise BadArgument(
                f"bad handler: found=the class {handler.__name__} "
                f"expected=an instance; write {handler.__name__}()"
            )
        # Only here: compiling imports Numba, unless the code is in the cache.
        program: Program = import_module("chronicle.hot.compile").program_for(handler)
        return program
    if callable(handler):
        return callable_program(handler)
    raise BadArgument(
        f"bad handler: found={type(handler).__name__} "
        "expected=a chronicle.Handler, a NativeHandler or a callable"
    )


def handler_path(handler: Any) -> str:
    """Return ``module:Class`` of a `chronicle.Handler`; empty for what cannot be found by a name.

    A class inside of a function has no name that could be imported.
    """
    cls = type(handler)
    if getattr(handler, "__chronicle_handler__", None) is None or "<locals>" in cls.__qualname__:
        return ""
    return f"{cls.__module__}:{cls.__qualname__}"


def import_handler(path: str) -> Any:
    """Import what ``module:name`` names; of a handler class make an instance.

    Imports the module, which runs its code. The instance has the fields of the class: a constructor
    of its own is not called. A function is called, and makes the handler.

    Raises
    ------
    BadArgument
        If there is no such module or name, or it is no handler.
    """
    module_name, colon, name = path.partition(":")
    if not (colon and module_name and name):
        raise BadArgument(f"bad handler: found={path!r} expected=module:Class")
    try:
        found: Any = import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise BadArgument(
            f"bad handler: found={path!r}, which cannot be imported: {error}; "
            "run this where the module can be found, or set PYTHONPATH"
        ) from error
    if isinstance(found, type) and getattr(found, "__chronicle_handler__", None) is not None:
        from chronicle.hot.handler import Handler

        made: Any = object.__new__(found)
        Handler.__init__(made)
        return made
    if isinstance(found, Program | NativeHandler) or not callable(found):
        return found
    if getattr(found, "__chronicle_handler__", None) is not None:
        return found
    return found()
