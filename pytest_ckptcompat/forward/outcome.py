"""How a forward pass ended."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from pytest_ckptcompat.core.findings import Finding, finding
from pytest_ckptcompat.core.memory import shown

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Outcome:
    """How a forward pass went.

    Attributes:
        status: ``passed``, ``failed``, ``rehearsed`` or ``skipped``.
        detail: one line: where it ran and what came out (``on cpu: (2, 1), (2, 14)``), or why it did not.
        findings: what is wrong; empty unless it failed.
        outputs: what the model gave, with its tensors on the CPU; None where nothing was computed.
        on_cuda: whether it really ran on a card.
        seconds: wall time of the pass; on a card, of the first one there.
        peak_bytes: the most memory the pass held on the card, or would hold there, weights included; 0 on the
            CPU.
    """

    status: Literal["passed", "failed", "rehearsed", "skipped"]
    detail: str
    findings: list[Finding] = field(default_factory=list)
    outputs: Any = None
    on_cuda: bool = False
    seconds: float = 0.0
    peak_bytes: int = 0


def within(outcome: Outcome, most: int | None) -> Outcome:
    """The outcome, failed where the pass needs more memory of a card than it may.

    Args:
        outcome: of a pass on a card, real or rehearsed, or on the CPU, which is not judged.
        most: bytes, or None.
    """
    if most is None or outcome.status not in ("passed", "rehearsed"):
        return outcome
    if not outcome.peak_bytes:
        return replace(outcome, detail=f"{outcome.detail}; max_memory is for CUDA, and was not judged")
    if outcome.peak_bytes <= most:
        return outcome
    message = f"the forward pass needs {shown(outcome.peak_bytes)}, and max_memory is {shown(most)}"
    found = finding("forward-memory", message=message)
    return replace(outcome, status="failed", findings=[*outcome.findings, found])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run with the model in eval mode and no gradients; every module's mode is then set back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
