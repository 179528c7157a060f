"""Python's search for cyclic garbage, paused where many small objects would set it off again and again."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def paused() -> Iterator[None]:
    """Leave cyclic garbage where it is for as long as the block takes.

    Only for work that holds no values of a checkpoint: what is garbage stays in memory meanwhile.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
