"""Seed every random generator that a model or batch may use, and restore it afterwards."""

from __future__ import annotations

import random
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


DRAWN = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
"""The dtypes in which torch draws continuous random values."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy (if it is imported) and torch, and restore them afterwards.

    CUDA generators are included only if CUDA is initialised, so initialise it first if the body uses a card.
    """
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    random.seed(seed)
    if numpy:
        numpy.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if cuda_states:
        torch.cuda.manual_seed_all(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states:
            with suppress(
                RuntimeError
            ):  # a failed kernel may have destroyed the CUDA context with its generators
                torch.cuda.set_rng_state_all(cuda_states)
