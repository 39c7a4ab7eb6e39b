"""What strategies, routers and exchanges say to each other: the messages, and words for them.

```text
  STRATEGY ──Order, Cancel──> ROUTER ──Forward──> EXCHANGE
           <────Report──────         <─Execution─
```

Every message that is published because of another one names it, by its sequence number: `cause`.
So whoever was killed reads what it had published itself, to the end, and knows what it had done:
there is no other memory that could disagree. `accounts.py` checks a whole bus by the same numbers.

An order is named by *session* and *order id*. The session is the life of a strategy's queue of
orders (of the random id that a queue gets when it is made), so a strategy that is killed and comes
back is the same session, and one whose files were thrown away is another.
"""

from __future__ import annotations

import enum
from typing import Annotated, Final

import chronicle
from chronicle.message import MessageBase, Scale, char8, i64, u8, u32

__all__ = [
    "BUY",
    "SELL",
    "Action",
    "Cancel",
    "Execution",
    "Forward",
    "Kind",
    "Order",
    "Price",
    "Reason",
    "Report",
    "session_of",
]

Price = Annotated[i64, Scale(4)]

BUY: Final = 1
SELL: Final = 2


class Action(enum.IntEnum):
    """What a `Forward` asks for."""

    NEW = 1
    CANCEL = 2


class Kind(enum.IntEnum):
    """What an `Execution` or a `Report` says."""

    ACK = 1
    REJECT = 2
    FILL = 3
    CANCELLED = 4
    CANCEL_REJECT = 5


class Reason(enum.IntEnum):
    """Why an order or a cancel was refused."""

    NONE = 0
    UNKNOWN_STRATEGY = 1
    SIDE = 2
    PRICE_BAND = 3
    QUANTITY = 4
    NOTIONAL = 5
    OPEN_ORDERS = 6
    RATE = 7
    STALE = 8
    #: By the exchange: it lay there longer than it was good for.
    EXPIRED = 9
    #: By the exchange: it does not want to. Real ones have their reasons.
    MARKET = 10
    #: By the exchange: no room.
    BOOK_FULL = 11
    #: Of a cancel: it is not open (any more).
    NOT_OPEN = 12
    ORDER_ID = 13


@chronicle.message(101)
class Order(MessageBase):
    """A strategy wants to buy or sell. Ids count from 1; the message's time says how old it is.

    `cause` is the message of the feed that it answers to. `gateway` is the router that it is for.
    """

    order_id: i64
    cause: i64
    price: Price
    quantity: i64
    symbol: char8
    gateway: char8
    side: u8


@chronicle.message(102)
class Cancel(MessageBase):
    """A strategy wants an order back."""

    order_id: i64
    gateway: char8


@chronicle.message(103)
class Forward(MessageBase):
    """The router passes an order or a cancel on. `cause` counts in the queue of the session.

    `seat` is where the router finds the strategy again; it comes back in every `Execution`.
    """

    cause: i64
    session: i64
    order_id: i64
    expires_ns: i64
    price: Price
    quantity: i64
    symbol: char8
    seat: u32
    action: u8
    side: u8


@chronicle.message(104)
class Execution(MessageBase):
    """The exchange says what became of a `Forward`, which `cause` counts.

    There are one or more for each; `last` marks the last one. `request` is the cause of that
    forward. `closed` is set where nothing more can come for the order.
    """

    cause: i64
    request: i64
    session: i64
    order_id: i64
    execution_id: i64
    price: Price
    quantity: i64
    remaining: i64
    symbol: char8
    seat: u32
    kind: u8
    side: u8
    reason: u8
    last: u8
    closed: u8


@chronicle.message(105)
class Report(MessageBase):
    """The router tells a strategy. `cause` counts what the exchange said; 0: the router says it.

    `request` counts the strategy's own message that this is about.
    """

    cause: i64
    request: i64
    session: i64
    order_id: i64
    execution_id: i64
    price: Price
    quantity: i64
    remaining: i64
    symbol: char8
    kind: u8
    side: u8
    reason: u8
    closed: u8


def session_of(queue_id: str) -> int:
    """Return the session of a queue of orders: 63 bits of its random id.

    >>> session_of("ffffffffffffffff0123456789abcdef")
    9223372036854775807
    """
    return int(queue_id[:16], 16) & 0x7FFF_FFFF_FFFF_FFFF
