"""The time budget of a search."""

from __future__ import annotations

from time import thread_time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")
SECONDS = 2.0
_OFTEN = 256
"""The clock is checked once per this many items."""


class OutOfTime(Exception):  # noqa: N818  # the search stops, which is not an error
    """Raised when the budget is spent."""


class Budget:
    """The time left for a search, of the processor: a busy machine finds what an idle one finds.

    Attributes:
        spent: whether a search that asked `check` had to stop.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._end = thread_time() + seconds
        self.spent = False

    def check(self) -> None:
        """Raise `OutOfTime` if no time is left."""
        if self.left <= 0:
            self.spent = True
            raise OutOfTime

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items until the time is up."""
        for place, item in enumerate(items):
            if not place % _OFTEN:
                self.check()
            yield item

    @property
    def left(self) -> float:
        """Seconds of the processor."""
        return self._end - thread_time()
