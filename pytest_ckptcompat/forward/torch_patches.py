"""Patches of torch while a CUDA device is simulated: CUDA is available, and no values are checked."""

from __future__ import annotations

import logging
import sys
import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.backends import mha
from torch.distributions import Distribution
from torch.nn.modules import transformer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BELIEVERS = ("torch.amp.", "torch.cuda.amp.")
"""Parts of torch that must see the simulated device, or they would disable autocast regions."""


@contextmanager
def pretending(card: torch.device) -> Iterator[None]:
    """Make torch report that `card` exists inside the block, and restore everything afterwards."""
    index = card.index or 0
    answers = {
        "is_available": True,
        "is_bf16_supported": True,
        "is_initialized": True,
        "device_count": index + 1,
        "current_device": index,
        "synchronize": None,
        "empty_cache": None,
    }
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # fake tensors emit warnings
        # they also log every error of an operation, which is reported anyway
        stack.enter_context(_replaced(logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True))
        stack.enter_context(_eager())
        stack.enter_context(_heedless())
        if card.type != "cpu":
            for name, answer in answers.items():
                told = _told(getattr(torch.cuda, name), answer)
                stack.enter_context(_replaced(torch.cuda, name, told))
        yield


def _told(truth: Callable[..., Any], answer: Any) -> Callable[..., Any]:
    """Return a function that gives `answer` to the model and autocast, and the truth to the rest of torch."""

    def told(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "") + "."
        if caller.startswith("torch.") and not caller.startswith(_BELIEVERS):
            return truth(*args, **kwargs)
        return answer

    return told


@contextmanager
def _heedless() -> Iterator[None]:
    """Disable code that reads values and has an alternative without reading them.

    These are the argument checks of distributions, the packing of padded batches in nn.TransformerEncoder,
    and the check whether a mask given to nn.Transformer is causal.
    """
    fast = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with (
            _replaced(Distribution, "_validate_args", False),
            _replaced(
                transformer,
                "_detect_is_causal_mask",
                lambda mask, is_causal=None, size=None: is_causal is True,
            ),
        ):
            yield
    finally:
        mha.set_fastpath_enabled(fast)


@contextmanager
def _eager() -> Iterator[None]:
    """Run functions wrapped by ``torch.compile`` eagerly, because the compiler would look for the device."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute inside the block, unless this torch release lacks it."""
    if not hasattr(owner, name):
        yield
        return
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
