"""`Value`: small immutable objects that compare by their fields.

What a frozen `dataclasses.dataclass` with slots gives, without its import, which pulls in
`inspect`, `ast` and `re`, and costs more than all of this package; see docs/internals/decisions.md.
"""

from __future__ import annotations

from typing import ClassVar, NoReturn, dataclass_transform

__all__ = ["Value"]


@dataclass_transform(frozen_default=True)
class Value:
    """Base of immutable value objects. A subclass lists its fields in `__slots__`.

    Positional patterns follow the order of the fields.

    >>> class Point(Value):
    ...     __slots__ = ("x", "y")
    ...     def __init__(self, x: int, y: int) -> None:
    ...         self._set(x, y)
    >>> Point(1, 2) == Point(1, 2), Point(1, 2)
    (True, Point(x=1, y=2))
    """

    __slots__: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        # Type checkers have it from the decorator above, which reads the annotations.
        cls.__match_args__ = tuple(cls.__slots__)  # type: ignore[misc, attr-defined]

    def _set(self, *values: object) -> None:
        """Fill the fields, once, from the constructor."""
        for name, value in zip(self.__slots__, values, strict=True):
            object.__setattr__(self, name, value)

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable; make a new one")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is immutable; make a new one")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self._values()
