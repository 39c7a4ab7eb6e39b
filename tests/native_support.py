"""What the tests of hot threads share: a handler in C, compiled once, and waiting for things."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from chronicle import NativeHandler, _core
from chronicle.hot.program import LogSite

from tests.queue_support import PATIENCE_S

#: Message types of the handler in C.
TYPE_SUM, TYPE_FAIL, TYPE_STOP, TYPE_SLOW = 1, 2, 3, 4

STATE = np.dtype(
    [("sum", "<u8"), ("messages", "<u8"), ("commands", "<u8"), ("events", "<u8"), ("idles", "<u8"),
     ("started", "<u8"), ("stopped", "<u8"), ("last_source", "<u8")]
)  # fmt: skip

SOURCE = r"""
#include <stdint.h>
#include <string.h>
#include <unistd.h>

typedef struct { const uint8_t *payload; uint32_t len; uint16_t type_id, kind;
                 uint32_t source, tag; uint64_t sequence, timestamp_ns; } message_t;
typedef struct { uint32_t abi, flags; void *state; uint64_t now_ns; uint64_t *counters;
                 const void *fail_info; int64_t fail_code; } context_t;
typedef struct { uint64_t sum, messages, commands, events, idles, started, stopped,
                          last_source; } state_t;

int64_t (*append)(context_t *, uint32_t, uint32_t, const uint8_t *, uint32_t);
void (*log_line)(context_t *, uint32_t, uint32_t, uint64_t, const uint64_t *);

int32_t on_message(context_t *c, const message_t *m) {
    state_t *s = c->state;
    uint64_t word = 0;
    memcpy(&word, m->payload, m->len < 8 ? m->len : 8);
    if (m->kind == 2) { s->events++; return 0; }
    switch (m->type_id) {
    case 1: {
        s->sum += word;
        s->last_source = m->source;
        if (m->kind == 1) s->commands++; else s->messages++;
        c->counters[0]++;
        double half = word / 2.0;
        uint64_t args[4] = { word, 0, 0, 1 };
        memcpy(&args[1], &half, 8);
        memcpy(&args[2], "abc", 3);
        log_line(c, 0, 4, 0x5431, args);
        return append(c, 0, 1, m->payload, m->len) < 0 ? 2 : 0;
    }
    case 2: c->fail_info = (void *)5; c->fail_code = -7; return 2;
    case 3: c->flags |= 1; return 0;
    case 4: getppid(); return 0;
    case 5: { volatile uint64_t x = 0; while (x < word) x++; return 0; }
    }
    return 1;
}
int32_t on_idle(context_t *c) { ((state_t *)c->state)->idles++; return 0; }
int32_t on_start(context_t *c) { ((state_t *)c->state)->started++; return 0; }
int32_t on_stop(context_t *c) { ((state_t *)c->state)->stopped++; return 0; }
int32_t fails(context_t *c) { return 2; }
"""


@functools.cache
def compiled(text: str) -> ctypes.CDLL:
    """Compile C, and load it."""
    folder = Path(tempfile.mkdtemp(prefix="chronicle-hot-"))
    source, made = folder / "handler.c", folder / "handler.so"
    source.write_text(text)
    command = ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(made), str(source)]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(made))
    for path in (source, made):
        path.unlink()
    folder.rmdir()
    return loaded


@functools.cache
def library() -> ctypes.CDLL:
    """Compile the handler, and tell it where to call."""
    loaded = compiled(SOURCE)
    symbols = _core.hot_symbols()
    for name, symbol in (("append", "chr_hot_append"), ("log_line", "chr_hot_log")):
        ctypes.c_void_p.in_dll(loaded, name).value = symbols[symbol]
    return loaded


def native(**options: Any) -> NativeHandler:
    """Return the handler in C."""
    made = library()
    options.setdefault("on_idle", made.on_idle)
    return NativeHandler(
        made.on_message,
        on_start=options.pop("on_start", made.on_start),
        on_stop=made.on_stop,
        state=np.zeros(1, STATE),
        outputs=("out", "other"),
        counters=("seen",),
        log_sites=(LogSite(20, "word={} half={} text={} flag={}", "handler.c", 30),),
        **options,
    )


def until(condition: Callable[[], Any], what: str = "it") -> Any:
    """Wait for what must happen."""
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} never happened"
        time.sleep(0.0005)
    return found


def word(value: int) -> bytes:
    return value.to_bytes(8, "little")
