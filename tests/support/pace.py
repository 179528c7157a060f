"""Seconds of one machine, whatever machine the tests run on and whoever else uses it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

STEPS, SECONDS = 1_000_000, 0.17
"""So many steps of `slowness` take so long on the machine of the README's figures, with nothing beside it."""


def slowness() -> float:
    """How many times as long as there the same work takes here and now; at least 1."""
    start = time.process_time()
    stack, memo = [], [(0, "")] * 4096
    for n in range(STEPS):
        stack.append((n, str(n)))
        memo[n & 4095] = stack.pop()
    return max(1, (time.process_time() - start) / SECONDS)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail where the block takes more of the processor's time than it would there in so many seconds."""
    start = time.process_time()
    yield
    took = time.process_time() - start
    assert took < seconds or took < seconds * slowness()
