"""Typed uses of the public names, for strict mypy alone: nothing here is ever run.

A wrong use is marked by an ignore with the code of the error that it must be. Strict mypy reports
ignores that it did not need, so a wrong use that passes is an error as well.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated, Any, assert_type

import chronicle
import numpy as np
from chronicle import AddReader, Handler, on
from chronicle.hot import (
    Buffer,
    Bytes,
    Cells,
    Counter,
    Info,
    Output,
    Outputs,
    Size,
    Slots,
    Table,
    symbol_key,
)
from chronicle.hot.audit import audit
from chronicle.message import Array, MessageBase, Scale, char8, f64, i64, u32
from chronicle.queue import Start
from numpy.typing import NDArray


@chronicle.message(7)
class Trade(MessageBase):
    price: Annotated[i64, Scale(4)]
    symbol: char8
    qty: u32 = 0


def publishing(path: Path) -> None:
    with chronicle.Queue.open_publisher(
        path, schema=[Trade], segment_bytes=1 << 20, checksum=True, group_readable=True
    ) as writer:
        assert_type(writer, chronicle.QueueWriter)
        assert_type(writer.append(1, b"x"), int)
        assert_type(writer.append(1, bytearray(b"x"), timestamp_ns=5), int)
        assert_type(writer.append(1, memoryview(b"x")), int)
        assert_type(writer.append(1, np.zeros(3)), int)
        assert_type(writer.append_many(np.zeros(3, Trade.dtype)), int)
        assert_type(writer.append_many(np.zeros(3), type_id=Trade), int)
        assert_type(writer.publish(Trade(price=1, symbol=b"A")), int)
        assert_type(writer.flush(), int)
        assert_type(writer.next_seq, int)
        assert_type(writer.closed, bool)
        assert_type(writer.recovery, chronicle.Recovery)
        assert_type(writer.recovery.set_aside, tuple[str, ...])
        assert_type(writer.schema, dict[int, type[MessageBase]])
        writer.append(1, "text")  # type: ignore[arg-type]
        writer.append("1", b"x")  # type: ignore[arg-type]
        writer.append(1, b"x", 5)  # type: ignore[call-arg]
        writer.append(1)  # type: ignore[call-arg]
        writer.publish(b"bytes")  # type: ignore[arg-type]
        writer.append_many([1, 2, 3])  # type: ignore[arg-type]
        writer.next_seq = 5  # type: ignore[misc]
        writer.nothing()  # type: ignore[attr-defined]
    chronicle.Queue.open_publisher(path, segment_size=5)  # type: ignore[call-arg]
    chronicle.Queue.open_publisher(5)  # type: ignore[arg-type]
    chronicle.Queue.open_publisher(path, schema=Trade)  # type: ignore[arg-type]


def subscribing(path: Path) -> None:
    starts: list[Start] = ["resume", "earliest", "latest", 5, dt.datetime.now(dt.UTC)]
    with chronicle.Queue.open_subscriber(str(path), "me", start=starts[0], wait="spin") as reader:
        assert_type(reader, chronicle.QueueReader)
        assert_type(reader.next(), chronicle.Message | None)
        assert_type(reader.wait(), bool)
        assert_type(reader.wait(timeout=1), bool)
        assert_type(reader.name, str | None)
        assert_type(reader.gaps, int)
        assert_type(reader.registered, bool)
        assert_type(list(reader), list[chronicle.Message])
        reader.commit()
        reader.seek("latest")
        reader.seek_time_ns(5)
        batch: NDArray[Any] = reader.read_batch(Trade, count_max=5)
        assert_type(batch["price"].sum(), Any)
        messages, headers = reader.read_batch_with_headers()
        assert_type(headers, NDArray[Any])
        assert_type(messages, NDArray[Any])
        for message in reader:
            assert_type(message.seq, int)
            assert_type(message.timestamp_ns, int)
            assert_type(message.type_id, int)
            assert_type(message.source, int | None)
            assert_type(message.payload, memoryview)
            assert_type(len(message), int)
            assert_type(reader.decode(message), MessageBase)
            assert_type(Trade.view(message.payload), Trade)
            assert_type(Trade.view(message), Trade)
            message.seq = 5  # type: ignore[misc]
            message.paylod  # type: ignore[attr-defined] # noqa: B018
        reader.next().seq  # type: ignore[union-attr] # noqa: B018
        reader.wait("soon")  # type: ignore[arg-type]
        reader.seek("middle")  # type: ignore[arg-type]
        reader.seek(1.5)  # type: ignore[arg-type]
        reader.read_batch(7)  # type: ignore[arg-type]
        reader.read_batch(Trade, 5)  # type: ignore[call-arg]
    chronicle.Queue.open_subscriber(path)  # type: ignore[call-arg]
    chronicle.Queue.open_subscriber(path, "me", start="sometime")  # type: ignore[arg-type]
    chronicle.Queue.open_subscriber(path, "me", wait="busy")  # type: ignore[arg-type]
    chronicle.QueueReader(path)  # type: ignore[call-arg]


async def waiting(reader: chronicle.QueueReader, fanin: chronicle.FanInReader) -> None:
    async for message in reader:
        assert_type(message, chronicle.Message)
    async for message in fanin:
        assert_type(message.source, int | None)


def merging(readers: list[chronicle.QueueReader]) -> None:
    with chronicle.FanInReader(readers, mode="strict", wait="sleep") as fanin:
        assert_type(fanin, chronicle.FanInReader)
        assert_type(fanin.add_reader(readers[0]), int)
        assert_type(fanin.remove_reader(0), chronicle.QueueReader)
        assert_type(fanin.sources, list[tuple[int, chronicle.QueueReader]])
        assert_type(fanin.next(), chronicle.Message | None)
        assert_type(fanin.wait(0.1), bool)
        assert_type(len(fanin), int)
        fanin.commit()
        fanin.add_reader("queue")  # type: ignore[arg-type]
    chronicle.FanInReader(readers, mode="fast")  # type: ignore[arg-type]
    chronicle.FanInReader(5)  # type: ignore[arg-type]


def talking(reader: chronicle.QueueReader) -> None:
    tx, rx = chronicle.channel(16)
    assert_type(tx, chronicle.Sender)
    assert_type(rx, chronicle.Receiver)
    tx.send(AddReader(reader))
    tx.send(chronicle.Stop(), timeout=1.0)
    assert_type(rx.try_recv(), Any)
    match rx.try_recv():
        case AddReader(found):
            assert_type(found, chronicle.QueueReader)
    chronicle.channel()  # type: ignore[call-arg]
    chronicle.channel("16")  # type: ignore[arg-type]
    tx.send()  # type: ignore[call-arg]
    AddReader(5)  # type: ignore[arg-type]
    AddReader(reader).reader = reader  # type: ignore[misc]


def typed_messages() -> None:
    trade = Trade(price=5, symbol=b"A")
    assert_type(trade.price, int)
    assert_type(trade.symbol, bytes)
    assert_type(trade.qty, int)
    assert_type(trade.pack(), bytes)
    assert_type(Trade.type_id, int)
    Trade(price="5", symbol=b"A")  # type: ignore[arg-type]
    Trade(5, b"A", 6)  # type: ignore[call-arg]
    Trade(price=5)  # type: ignore[call-arg]
    trade.price = 6  # type: ignore[misc]


def failing(error: chronicle.Gap, other: chronicle.ChronicleError) -> None:
    assert_type(error.first_missing, int)
    assert_type(error.next, int)
    assert_type(error.reason, str)
    assert_type(error.source, int | None)
    assert_type(other.category, chronicle.errors.Category)
    try:
        raise error
    except OSError as caught:
        if isinstance(caught, chronicle.DiskFull):
            assert_type(caught.needed_bytes, int)
    other.first_missing  # type: ignore[attr-defined] # noqa: B018


def looking_after(path: Path) -> None:
    with chronicle.Provisioner() as provisioner:
        assert_type(provisioner, chronicle.Provisioner)
        writer = chronicle.Queue.open_publisher(path, provisioner=provisioner, retention_bytes=1)
        provisioner.attach(writer, flush_interval=1.0, retention_age=5)
        provisioner.attach(path)  # type: ignore[arg-type]
    assert_type(chronicle.inspect(path), dict[str, Any])
    assert_type(chronicle.verify(path, lambda done, total: None), dict[str, Any])
    assert_type(chronicle.apply_retention(path, bytes_max=5), dict[str, Any])
    assert_type(chronicle.clock_ns(), int)
    assert_type(chronicle.__version__, str)
    chronicle.remove_reader(path, "me")
    chronicle.apply_retention(path, 5)  # type: ignore[call-arg]
    chronicle.verify(path, lambda done: None)  # type: ignore[arg-type,misc]
    chronicle.remove_reader(path)  # type: ignore[call-arg]


def handling(trade: Trade) -> None:
    class Mean(Handler):
        alpha: f64 = 0.5
        mean: f64
        window: Annotated[Cells[float], Array(f64, 8)]
        trades: Annotated[Any, Table(Trade, 4)]
        held: Annotated[Buffer, Size(64)]
        out: Output
        table: Annotated[Outputs, Slots(4)]
        seen: Counter

        @on(Trade)
        def trade(self, trade: Trade, info: Info) -> None:
            assert_type(trade.price, int)
            assert_type(info.seq, int)
            self.mean += self.alpha * (trade.price - self.mean)
            self.window[info.seq % len(self.window)] = self.mean
            self.trades[0] = trade
            self.seen.add(1)
            assert_type(self.out.publish(trade), int)
            self.log.info("mean {}", self.mean)
            self.mean = b"x"  # type: ignore[assignment]
            self.window[0] = b"x"  # type: ignore[assignment]
            self.out.publish(5)  # type: ignore[arg-type]
            self.seen.add("5")  # type: ignore[arg-type]

        @on(Trade)  # type: ignore[arg-type]
        def wrong(self, trade: int) -> None: ...

        @on.command(Trade)
        def command(self, trade: Trade) -> None: ...

        @on.datagram
        def datagram(self, data: Bytes, info: Info) -> None:
            assert_type((data.u16(0), data.i64_be(8), len(data)), tuple[int, int, int])
            assert_type(data.f64(0), float)
            assert_type(data.padded(0, 8), bytes)
            assert_type(data.part(0, 2), Bytes)
            assert_type((info.line, info.tag), tuple[int, int])
            assert_type(self.held.view(0, 8), Bytes)
            self.held.store(0, data)
            self.held.store(0, b"x")  # type: ignore[arg-type]
            assert_type(self.table[info.line], Output)
            assert_type(self.table[0].publish(trade), int)
            assert_type(self.out.publish_bytes(5, data), int)
            self.out.publish_bytes(5, b"x")  # type: ignore[arg-type]

        @on.bytes(9)
        def raw(self, data: Bytes) -> None: ...

        @on.bytes(8)  # type: ignore[arg-type]
        def typed(self, data: Trade) -> None: ...

        @on.idle
        def idle(self) -> None:
            assert_type(self.now_ns, int)
            self.stop()

        @on.stop  # type: ignore[type-var]
        def ended(self, why: str) -> None:
            self.fail(5)  # type: ignore[arg-type]

    mean = Mean(alpha=0.25)
    mean.trade(trade, Info(seq=5))
    mean.command(trade)
    mean.idle()
    assert_type(mean.out.published, list[MessageBase])
    assert_type(mean.seen.value, int)
    assert_type(mean.receive(trade), bool)
    assert_type(mean.receive(b"data", Info(line=1), kind="datagram"), bool)
    mean.datagram(b"data", Info())  # type: ignore[arg-type]
    assert_type(audit(Mean).accepted, bool)
    mean.trade(5, Info())  # type: ignore[arg-type]
    mean.trade(trade)  # type: ignore[call-arg]
    Info(seq="5")  # type: ignore[arg-type]
    symbol_key(5)  # type: ignore[arg-type]
    on(5)  # type: ignore[arg-type]
    audit(5)  # type: ignore[arg-type]
