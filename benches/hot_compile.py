"""What compiling a handler costs: one of 300 lines, cold and from the cache, in fresh processes.

The time runs from before ``chronicle.hot`` is imported until the program could be called.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benches.common import Run, median

METHODS = 12

HEAD = """
import math
import time
started = time.perf_counter()
from chronicle.hot import Counter, Handler, Info, Output, mix64, on, symbol_key, table
from chronicle.message import MessageBase, array, char8, f64, i64, message, u32

@message(1)
class Level(MessageBase):
    price: i64
    size: u32

@message(2)
class Signal(MessageBase):
    symbol: char8
    cause: i64
    value: f64
"""

MESSAGE = """
@message({type_id})
class Trade{n}(MessageBase):
    time_ns: i64
    symbol: char8
    price: i64
    size: u32
"""

CLASS = """
class Large(Handler):
    alpha: f64 = 0.05
    mean: f64
    variance: f64
    position: i64
    cost: i64
    volume: i64
    last_ns: i64
    window: array[f64, 64]
    counts: array[i64, 32]
    book: table[Level, 128]
    out: Output
    alerts: Output
    seen: Counter
"""

# Twenty-odd lines each, of what handlers are made of.
METHOD = """
    @on(Trade{n})
    def trade{n}(self, trade: Trade{n}, info: Info) -> None:
        self.seen.add(1)
        price = trade.price / 10_000
        slot = mix64(symbol_key(trade.symbol) + {n}) % len(self.book)
        level = self.book[slot]
        if level.price == 0 or trade.time_ns - self.last_ns > 1_000_000_000:
            level.price = trade.price
        level.size = min(level.size + trade.size, 4_000_000_000)
        error = price - self.mean
        self.mean += self.alpha * error
        self.variance += self.alpha * (error * error - self.variance)
        self.window[self.seen.value % 64] = price
        total = 0.0
        for i in range({n}, 64):
            total += self.window[i]
        if total > 0.0 and abs(error) > 3.0 * math.sqrt(max(self.variance, 0.0)):
            self.out.publish(Signal(symbol=trade.symbol, cause=info.seq, value=error))
            self.log.info("{{}} is {{}} off, {n}", trade.symbol, error)
        self.fill{n}(trade.size if error < 0.0 else -trade.size, trade.price)
        self.last_ns = max(self.last_ns, trade.time_ns)

    def fill{n}(self, quantity: int, price: int) -> None:
        self.position += quantity
        self.cost += quantity * price
        self.counts[(quantity & 31)] += {n} + 1
"""

TAIL = """
from chronicle.hot.compile import build, program_for
program = program_for(Large())
print(time.perf_counter() - started, int("numba" in __import__("sys").modules))
"""


def source() -> str:
    parts = [HEAD]
    parts += [MESSAGE.format(n=n, type_id=10 + n) for n in range(METHODS)]
    parts.append(CLASS)
    parts += [METHOD.format(n=n) for n in range(METHODS)]
    return "".join(parts)


def handler_lines() -> int:
    """Lines of the class alone."""
    return source().partition("class Large")[2].count("\n")


def start(script: Path, cache: str) -> tuple[float, bool]:
    environment = {**os.environ, "CHRONICLE_CACHE_DIR": cache}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    seconds, with_numba = done.stdout.split()
    return float(seconds) * 1e3, with_numba == "1"


def measure(run: Run) -> dict[str, float]:
    """Compile it cold, then load it warm, several times each."""
    cold: list[float] = []
    warm: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "large.py"
        script.write_text(source() + TAIL)
        for number in range(run.size(5, 1)):
            cache = f"{folder}/cache-{number}"
            taken, with_numba = start(script, cache)
            assert with_numba, "a cold start compiles"
            cold.append(taken)
            for _ in range(run.size(5, 1)):
                taken, with_numba = start(script, cache)
                assert not with_numba, "a warm start takes the object from the cache"
                warm.append(taken)
    return {
        "hot_compile_handler_lines_count": handler_lines(),
        "hot_compile_cold_median_ms": median(cold),
        "hot_compile_warm_median_ms": median(warm),
    }
