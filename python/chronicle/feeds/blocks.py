"""Finding message blocks: a 16-bit length, then that many bytes, again and again.

Both IEX-TP and MoldUDP64 pack messages so, and Nasdaq's daily ITCH files are one long run of such
blocks. The next block can only be found through the length of the last one, which looks like a
loop over messages. Two ways around that:

*Lock-step* (`split_packets`): the packets of a chunk are independent, so the first block of every
packet is found at once, then the second of every packet that has one, and so on. There are as
many steps as the fullest packet has blocks, however many packets there are.

*Scan and verify* (`split_run`): a run is one chain. Where the format ties the type byte to the
length, every byte offset whose three bytes agree is a candidate; nearly all candidates are real.
The chain through them is then checked in one pass, and only where it does not run from one
candidate straight to the next is a step taken in Python. The result is the chain itself, whatever
the candidates were: a wrong candidate costs time, not truth.
"""

from __future__ import annotations

import numpy as np

from chronicle.feeds.batch import I64, U8, Bools
from chronicle.feeds.wire import windows


def split_packets(
    raw: U8, starts: I64, ends: I64, counts: I64, *, order: str
) -> tuple[I64, I64, Bools]:
    """Find the blocks of many packets at once.

    Parameters
    ----------
    raw
        The chunk that holds the packets.
    starts, ends
        Bounds of each packet's blocks, within `raw`.
    counts
        How many blocks each packet says it has.
    order
        Byte order of the lengths, ``"<"`` or ``">"``.

    Returns
    -------
    positions, lengths : ndarray
        Of every message of every sound packet, in stream order.
    sound : ndarray
        Which packets consist of exactly the blocks they declare. The others give no message.

    >>> raw = np.frombuffer(bytes([0, 1, 65, 0, 2, 66, 67]), np.uint8)
    >>> bounds = np.array([0]), np.array([7]), np.array([2])
    >>> positions, lengths, sound = split_packets(raw, *bounds, order=">")
    >>> positions.tolist(), lengths.tolist(), sound.tolist()
    ([2, 5], [1, 2], [True])
    """
    # A block takes two bytes at least. A packet that claims more must not make us take memory.
    sound = (counts >= 0) & (ends - starts >= 2 * counts)
    declared = np.where(sound, counts, 0)
    first = np.cumsum(declared) - declared
    positions = np.zeros(int(declared.sum()), np.int64)
    lengths = np.zeros(len(positions), np.int64)
    sizes = windows(raw, order + "u2")
    at, left = starts.copy(), declared.copy()

    active = np.flatnonzero(declared > 0)
    here, stop, todo, slot = at[active], ends[active], left[active], first[active]
    while active.size:
        size = sizes[here].astype(np.int64)
        positions[slot] = here + 2
        lengths[slot] = size
        here = here + 2 + size
        todo = todo - 1
        slot = slot + 1
        going = (todo > 0) & (here + 2 <= stop)
        if not going.all():
            done = ~going
            at[active[done]] = here[done]
            left[active[done]] = todo[done]
            active, here, stop = active[going], here[going], stop[going]
            todo, slot = todo[going], slot[going]
    sound &= (left == 0) & (at == ends)
    if not sound.all():
        keep = np.repeat(sound, declared)
        positions, lengths = positions[keep], lengths[keep]
    return positions, lengths, sound


def split_run(raw: U8, expected: I64) -> tuple[I64, I64, int]:
    """Find the blocks of one run with big-endian lengths.

    Parameters
    ----------
    raw
        The run; its first byte begins a block.
    expected
        Shape ``(256,)``: the usual length of a message by type byte, 0 if there is none. Only
        speed depends on it.

    Returns
    -------
    positions, lengths : ndarray
        Of every message that is complete in `raw`.
    end : int
        Where the first incomplete block begins.
    """
    size = raw.size
    candidates, following = _candidates(raw, expected)
    target = np.searchsorted(candidates, following)
    straight = np.zeros(len(candidates), np.bool_)
    if len(candidates) > 1:
        straight[:-1] = candidates[1:] == following[:-1]
    breaks = np.flatnonzero(~straight)

    pieces: list[I64] = []
    steps: list[int] = []
    at = 0
    index = int(np.searchsorted(candidates, at)) if len(candidates) else 0
    while True:
        if index < len(candidates) and candidates[index] == at:
            last = int(breaks[np.searchsorted(breaks, index)])
            if steps:
                pieces.append(np.array(steps, np.int64))
                steps = []
            pieces.append(candidates[index : last + 1])
            at, index = int(following[last]), int(target[last])
            continue
        if at + 2 > size:
            break
        following_one = at + 2 + (int(raw[at]) << 8 | int(raw[at + 1]))
        if following_one > size:
            break
        steps.append(at)
        at = following_one
        while index < len(candidates) and candidates[index] < at:
            index += 1
    pieces.append(np.array(steps, np.int64))
    begins = np.concatenate(pieces)
    lengths = (raw[begins].astype(np.int64) << 8) | raw[begins + 1]
    return begins + 2, lengths, at


def _candidates(raw: U8, expected: I64) -> tuple[I64, I64]:
    """Return the offsets that look like complete blocks, and where each one ends."""
    if raw.size < 3:
        none = np.zeros(0, np.int64)
        return none, none
    # All expected lengths are below 256, so the first byte of a length is zero.
    short = np.where(expected < 256, expected, 0).astype(np.uint8)
    wanted = short[raw[2:]]
    found = np.flatnonzero((raw[:-2] == 0) & (raw[1:-1] == wanted) & (wanted > 0))
    ends = found + 2 + raw[found + 1]
    complete = ends <= raw.size
    return found[complete], ends[complete]
