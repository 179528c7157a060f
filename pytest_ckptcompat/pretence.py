"""What torch says while a card is played: CUDA is available, nothing is compiled, nothing is logged."""

from __future__ import annotations

import logging
import sys
import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BELIEVERS = ("torch.amp.", "torch.cuda.amp.")
"""Parts of torch that must believe in the card, or autocast regions would be switched off."""


@contextmanager
def pretending(card: torch.device) -> Iterator[None]:
    """Let torch speak as if `card` were there; everything is given back afterwards."""
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
        warnings.simplefilter("ignore")  # fake tensors warn of themselves
        stack.enter_context(_silent(logging.getLogger("torch._subclasses.fake_tensor")))
        stack.enter_context(_eager())
        if card.type != "cpu":
            for name, answer in answers.items():
                stack.enter_context(_answered(name, answer))
        yield


@contextmanager
def _answered(name: str, answer: Any) -> Iterator[None]:
    """Let ``torch.cuda.name()`` give `answer` to the model and autocast; torch itself hears the truth."""
    truth: Callable[..., Any] = getattr(torch.cuda, name)

    def told(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if (caller + ".").startswith("torch.") and not caller.startswith(_BELIEVERS):
            return truth(*args, **kwargs)
        return answer

    setattr(torch.cuda, name, told)
    try:
        yield
    finally:
        setattr(torch.cuda, name, truth)


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """Fake tensors log every error that an operation raises; it is reported already."""
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


@contextmanager
def _eager() -> Iterator[None]:
    """Run what ``torch.compile`` wrapped as it was written: the compiler would look for the card."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
