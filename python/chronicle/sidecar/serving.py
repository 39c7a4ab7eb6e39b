"""A sidecar as the whole program: signals lead to the ordered shutdown, a second one forces."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING

from chronicle.errors import BadArgument

if TYPE_CHECKING:
    from chronicle.sidecar.runtime import ShutdownReport, Sidecar

__all__ = ["serve"]

_log = logging.getLogger("chronicle.sidecar")

#: How often the main thread looks whether the sidecar still runs.
_LOOK_S = 0.2


def serve(sidecar: Sidecar) -> ShutdownReport:
    """Carry out `Sidecar.serve`."""
    if threading.current_thread() is not threading.main_thread():
        raise BadArgument("serve() handles signals, which only the main thread can; call it there")
    asked = threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if asked.is_set():
            _log.critical("%s again: ending at once", name)
            # What was committed is in the queues' files; nothing else can be relied upon now.
            os._exit(128 + number)
        _log.warning("%s: shutting down; once more to end at once", name)
        asked.set()

    before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        sidecar.start()
        while not asked.wait(_LOOK_S):
            if not sidecar.alive:
                break
        return sidecar.stop()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
