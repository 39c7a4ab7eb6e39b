"""Low-latency, persisted messaging for one host: single-writer, many-reader queues in mapped files.

>>> import chronicle, tempfile
>>> tmp = tempfile.TemporaryDirectory()
>>> writer = chronicle.Queue.open_publisher(f"{tmp.name}/ticks", segment_bytes=1 << 16)
>>> reader = chronicle.Queue.open_subscriber(f"{tmp.name}/ticks", "me")
>>> writer.append(1, b"hello")
1
>>> bytes(reader.next().payload)
b'hello'
>>> writer.close(); reader.close(); tmp.cleanup()
"""

# The layout, lowest first. Imports go one way; a contract test holds it.
#
#   _core      native: mapped memory, atomics, system calls (crates/chronicle-core behind PyO3)
#   errors     the tree of exceptions                values: small immutable objects
#   message    @message: fixed-layout messages       channel, aio: small helpers
#   schema     queue.json: the messages that a queue carries; imported when first needed
#   queue      queues, readers, writers, fan-in     packets: rings of UDP datagrams, packet_filters
#   hot        handlers, and the hot thread that runs them; imported when first needed
#   bus        who is there: endpoints with LOCK, LEASE and READY
#   sidecar    the asyncio runtime beside hot threads; imported when first needed
#   top        what a bus looks like: the dashboard, and the plain data behind it
#   feeds      decoders of market data; imported by hand, since they need NumPy at once
#   cli        the command `chronicle`, one file per command
#
# Importing this package must stay cheap: no NumPy, asyncio, json, dataclasses here.

from __future__ import annotations

from typing import TYPE_CHECKING

from chronicle._core import __version__, clock_ns
from chronicle.channel import (
    AddReader,
    AddWriter,
    Receiver,
    RemoveReader,
    RemoveWriter,
    Sender,
    Stop,
    channel,
)
from chronicle.errors import (
    AuditRefused,
    BadArgument,
    BusRefused,
    Busy,
    ChannelFull,
    ChronicleError,
    Closed,
    CommandRefused,
    CompileError,
    CorruptRecord,
    DecodeError,
    DiskFull,
    EndpointActive,
    Forked,
    FormatError,
    Gap,
    GuardViolation,
    HandlerFailed,
    HotThreadFailed,
    MirrorDiverged,
    Moved,
    NotAQueue,
    QueueFull,
    QueueRemoved,
    ReaderActive,
    SchemaMismatch,
    SegmentMissing,
    SequenceNotWritten,
    SettingsRefused,
    TooLarge,
    WriterActive,
)
from chronicle.message import message
from chronicle.packets import Datagram, PacketRing, PacketStatistics
from chronicle.queue import (
    FanInReader,
    Message,
    Provisioner,
    Queue,
    QueueReader,
    QueueWriter,
    Recovery,
    apply_retention,
    inspect,
    remove_reader,
    verify,
)

if TYPE_CHECKING:
    from chronicle.hot.handler import Handler
    from chronicle.hot.on import on
    from chronicle.hot.program import NativeHandler
    from chronicle.hot.thread import HotThread
    from chronicle.sidecar.runtime import Sidecar

__all__ = [
    "AddReader",
    "AddWriter",
    "AuditRefused",
    "BadArgument",
    "BusRefused",
    "Busy",
    "ChannelFull",
    "ChronicleError",
    "Closed",
    "CommandRefused",
    "CompileError",
    "CorruptRecord",
    "Datagram",
    "DecodeError",
    "DiskFull",
    "EndpointActive",
    "FanInReader",
    "Forked",
    "FormatError",
    "Gap",
    "GuardViolation",
    "Handler",
    "HandlerFailed",
    "HotThread",
    "HotThreadFailed",
    "Message",
    "MirrorDiverged",
    "Moved",
    "NativeHandler",
    "NotAQueue",
    "PacketRing",
    "PacketStatistics",
    "Provisioner",
    "Queue",
    "QueueFull",
    "QueueReader",
    "QueueRemoved",
    "QueueWriter",
    "ReaderActive",
    "Receiver",
    "Recovery",
    "RemoveReader",
    "RemoveWriter",
    "SchemaMismatch",
    "SegmentMissing",
    "Sender",
    "SequenceNotWritten",
    "SettingsRefused",
    "Sidecar",
    "Stop",
    "TooLarge",
    "WriterActive",
    "__version__",
    "apply_retention",
    "channel",
    "clock_ns",
    "inspect",
    "message",
    "on",
    "remove_reader",
    "verify",
]

#: Public names whose modules import something heavy, by module; loaded when first asked for.
_LAZY = {
    "Handler": "chronicle.hot.handler",
    "HotThread": "chronicle.hot.thread",
    "NativeHandler": "chronicle.hot.program",
    "Sidecar": "chronicle.sidecar.runtime",
    "on": "chronicle.hot.on",
}


def __getattr__(name: str) -> object:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'chronicle' has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
