"""Books of late joiners: at every point what a naive oracle says, however the queues interleave."""

from __future__ import annotations

import random
from typing import Annotated, Any

import pytest
from chronicle.feeds.books import BookLevel, Books, JoinLive, RecentUpdate
from chronicle.feeds.iex import BuyLevel, QuoteUpdate, SellLevel, Trade
from chronicle.feeds.snapshot import SnapshotPublisher
from chronicle.feeds.stream import JOINED, PASSING, RESTARTED, FeedGap, FeedMark
from chronicle.hot import Info, Table
from chronicle.message import MessageBase

from tests.hot_support import Step, assert_same

Book = tuple[dict[int, int], dict[int, int]]
SYMBOLS = (b"A", b"BB", b"CCC", b"DDDD", b"EEEEEEEE")


class SmallRing(Books):
    """Books that keep few live messages, and have room for few levels."""

    recent: Annotated[Any, Table(RecentUpdate, 6)]
    levels: Annotated[Any, Table(BookLevel, 24)]


def mark(reason: int) -> FeedMark:
    return FeedMark(
        run_ns=1,
        sent_ns=1,
        next=1,
        offset=0,
        previous_next=0,
        session=1,
        channel=1,
        reason=reason,
    )


def market(rng: random.Random, count: int) -> list[MessageBase]:
    """Return live messages; the first says that the stream begins."""
    found: list[MessageBase] = [mark(JOINED)]
    symbols = SYMBOLS[: rng.randint(1, len(SYMBOLS))]
    for number in range(count):
        symbol, drawn = rng.choice(symbols), rng.random()
        price, size = rng.randint(1, 6) * 100, rng.choice((0, 0, 1, 5, 9))
        if drawn < 0.75:
            cls = rng.choice((BuyLevel, SellLevel))
            found.append(cls(time_ns=number, symbol=symbol, price=price, size=size, flags=1))
        elif drawn < 0.9:
            found.append(
                Trade(time_ns=number, symbol=symbol, price=price, trade_id=1, size=1, flags=0)
            )
        elif drawn < 0.95:
            found.append(
                QuoteUpdate(
                    time_ns=number,
                    symbol=symbol,
                    bid_price=price,
                    ask_price=price + 100,
                    bid_size=size,
                    ask_size=rng.choice((0, 3)),
                    flags=0,
                )
            )
        elif drawn < 0.97:
            found.append(mark(PASSING))
        elif drawn < 0.985:
            found.append(mark(RESTARTED))
        else:
            found.append(FeedGap(first_missing=1, next=2, run_ns=1, session=1))
    return found


def oracle(messages: list[MessageBase]) -> list[dict[bytes, Book]]:
    """Return all books after each number of messages: plain dictionaries, copied each time."""
    books: dict[bytes, Book] = {}
    found: list[dict[bytes, Book]] = [{}]
    for each in messages:
        if isinstance(each, FeedGap) or (isinstance(each, FeedMark) and each.reason != PASSING):
            books = {}
        elif isinstance(each, BuyLevel | SellLevel):
            side = books.setdefault(each.symbol, ({}, {}))[isinstance(each, SellLevel)]
            side[each.price] = each.size
            if not each.size:
                del side[each.price]
        elif isinstance(each, QuoteUpdate):
            books[each.symbol] = (
                {each.bid_price: each.bid_size} if each.bid_size else {},
                {each.ask_price: each.ask_size} if each.ask_size else {},
            )
        found.append({symbol: (dict(b), dict(a)) for symbol, (b, a) in books.items()})
    return found


def shown(books: Books, slot: int) -> Book:
    sides: list[dict[int, int]] = []
    row = books.symbols[slot]
    for node, sign in ((row.bids, -1), (row.asks, 1)):
        side: dict[int, int] = {}
        while node:
            level = books.levels[node]
            side[level.price] = level.size
            node = level.next
        assert list(side) == sorted(side, reverse=sign < 0)
        assert len(side) == len(set(side))
        sides.append(side)
    return sides[0], sides[1]


def assert_right(books: Books, read: int, states: list[dict[bytes, Book]]) -> int:
    """Check every book that says it is ready; return how many there are."""
    ready = 0
    for number in range(books.symbols_used):
        slot = books.order[number]
        row = books.symbols[slot]
        if not row.ready:
            continue
        ready += 1
        bids, asks = states[max(read, row.live_seq)].get(row.symbol, ({}, {}))
        assert shown(books, slot) == (bids, asks)
        assert books.best_bid(slot) == max(bids, default=0)
        assert books.best_ask(slot) == min(asks, default=0)
        assert books.best_bid_size(slot) == bids.get(max(bids, default=0), 0)
        assert books.best_ask_size(slot) == asks.get(min(asks, default=0), 0)
    return ready


def snapshots(
    rng: random.Random, messages: list[MessageBase], states: list[dict[bytes, Book]]
) -> tuple[list[MessageBase], list[int], int]:
    """Run a publisher over the messages, and then for some rounds.

    Returns what it told, after which live message it told each, and where those rounds begin.
    """
    publisher = SnapshotPublisher(every_messages=7)
    known: list[int] = []
    for number, each in enumerate(messages, 1):
        publisher.receive(each, Info(seq=number))
        publisher.set_clock(number * 1_000_000)
        for _ in range(rng.choice((0, 0, 0, 1, 1, 3))):
            publisher.next_ns = 0
            publisher.tell_when_idle()
        known.extend([number] * (len(publisher.snapshot.published) - len(known)))
        assert assert_right(publisher, number, states) == publisher.symbols_used
    rounds = len(known)
    for _ in range(3 * (publisher.symbols_used + 1)):
        publisher.tell_next()
    told = publisher.snapshot.published
    known.extend([len(messages)] * (len(told) - len(known)))
    assert publisher.overflows.value == 0
    return told, known, rounds


@pytest.mark.parametrize("cls", [Books, SmallRing])
def test_a_late_joiner_has_the_oracles_book_at_every_point(cls: type[Books]):
    for seed in range(40):
        rng = random.Random(seed)
        messages = market(rng, rng.randint(1, 90))
        states = oracle(messages)
        told, known, rounds = snapshots(rng, messages, states)
        read = rng.randint(0, len(messages))
        at = rng.randint(0, rounds)
        while at > 0 and known[at - 1] > read:
            at -= 1
        books = cls()
        books.receive(JoinLive(live_from=read + 1), kind="command")
        eager = rng.random()
        while read < len(messages) or at < len(told):
            # A snapshot may be read before the live messages that it holds, or long after.
            if at < len(told) and (read == len(messages) or rng.random() < eager):
                books.receive(told[at], Info(seq=at + 1))
                at += 1
            else:
                read += 1
                books.receive(messages[read - 1], Info(seq=read))
            assert_right(books, read, states)
        if books.overflows.value == 0:
            present = {symbol for symbol, (b, a) in states[-1].items() if b or a}
            ready = {
                books.symbols[books.order[n]].symbol
                for n in range(books.symbols_used)
                if books.symbols[books.order[n]].ready
            }
            assert present <= ready


def test_compiled_books_and_snapshots_do_the_same():
    rng = random.Random(5)
    messages = market(rng, 150)
    told, _, _ = snapshots(rng, messages, oracle(messages))
    live = [Step(each, Info(seq=n)) for n, each in enumerate(messages, 1)]
    for number in range(len(live), 0, -3):
        live.insert(number, Step(None, hook="idle", now_ns=number * 1_000_000))
    outcome = assert_same(lambda: SnapshotPublisher(every_messages=7), live)
    assert outcome.failure is None
    assert outcome.published["snapshot"]
    steps = [Step(JoinLive(live_from=1), kind="command")]
    steps += [Step(each, Info(seq=n)) for n, each in enumerate(told, 1)]
    steps[40:40] = [Step(each, Info(seq=n)) for n, each in enumerate(messages, 1)]
    for cls in (Books, SmallRing):
        assert assert_same(cls, steps).failure is None
