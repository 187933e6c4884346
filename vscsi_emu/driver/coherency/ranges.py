"""Address ranges with something known about each."""

from bisect import bisect_right, insort
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Range(NamedTuple, Generic[T]):
    start: int
    length: int
    value: T


class RangeMap(Generic[T]):
    """Ranges that do not overlap, found by any address in them."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ranges: dict[int, Range[T]] = {}

    def add(self, start: int, length: int, value: T) -> None:
        """In place of a range that starts there already."""
        if start not in self._ranges:
            insort(self._starts, start)
        self._ranges[start] = Range(start, length, value)

    def pop(self, start: int) -> Range[T] | None:
        """Removes the range that starts there, if there is one."""
        found = self._ranges.pop(start, None)
        if found is not None:
            self._starts.remove(start)
        return found

    def find(self, address: int) -> Range[T] | None:
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        found = self._ranges[self._starts[index]]
        return found if address < found.start + found.length else None
