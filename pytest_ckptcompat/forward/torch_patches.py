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

_AUTOCAST = ("torch.amp.", "torch.cuda.amp.")
"""Parts of torch that must see the simulated device, or they would disable autocast regions."""

_PATCHES: tuple[tuple[Any, str, Any], ...] = (
    # each of these reads values, and torch has a way around it
    (Distribution, "_validate_args", False),
    (transformer, "_detect_is_causal_mask", lambda mask, is_causal=None, size=None: is_causal is True),
    # fake tensors log every error of an operation, which is reported anyway
    (logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True),
)
"""Owner, attribute, value. Attributes that this torch release lacks are skipped."""


@contextmanager
def simulated_cuda(card: torch.device) -> Iterator[None]:
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
    patches = list(_PATCHES)
    if card.type != "cpu":
        told = {name: _told(getattr(torch.cuda, name), answer) for name, answer in answers.items()}
        patches += [(torch.cuda, name, function) for name, function in told.items()]
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # fake tensors emit warnings
        if "torch._dynamo" in sys.modules:  # compiled functions run eagerly: a compiler looks for the device
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        # the fast path of nn.TransformerEncoder packs padded batches, which reads values
        stack.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
        mha.set_fastpath_enabled(False)
        for owner, name, value in patches:
            if hasattr(owner, name):
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
        yield


def _told(truth: Callable[..., Any], answer: Any) -> Callable[..., Any]:
    """Return a function that gives `answer` to the model and autocast, and the truth to the rest of torch."""

    def told(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "") + "."
        if caller.startswith("torch.") and not caller.startswith(_AUTOCAST):
            return truth(*args, **kwargs)
        return answer

    return told
