"""Functions for handlers that mean the same compiled and uncompiled.

They are ordinary functions here. The compiler knows them by identity and puts in its own
instructions.
"""

from __future__ import annotations

__all__ = ["mix64", "symbol_key"]

_MASK = 0xFFFF_FFFF_FFFF_FFFF


def symbol_key(symbol: bytes) -> int:
    """Return text of up to 8 bytes as one signed 64-bit integer: equal texts, equal numbers.

    Raises
    ------
    ValueError
        If it is longer. Compiled, the handler fails.

    Examples
    --------
    >>> symbol_key(b"AAPL"), symbol_key(b"")
    (1280328001, 0)
    """
    if len(symbol) > 8:
        raise ValueError(f"symbol_key takes text of up to 8 bytes: value={symbol!r}")
    return int.from_bytes(symbol.ljust(8, b"\0"), "little", signed=True)


def mix64(key: int) -> int:
    """Return a hash of a 64-bit integer: each bit of `key` changes about half of the result's.

    The finaliser of SplitMix64, without its sign bit: 0 to 2**63 - 1, so that ``mix64(k) % size``
    and ``mix64(k) & mask`` are slots of a table.

    Examples
    --------
    >>> mix64(1), mix64(2)
    (1227844342346046657, 1682153688901572302)
    """
    z = (key + 0x9E37_79B9_7F4A_7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
    return (z ^ (z >> 31)) & 0x7FFF_FFFF_FFFF_FFFF
