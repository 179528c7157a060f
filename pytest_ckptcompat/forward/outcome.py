"""The outcome of a forward pass."""

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
    """The outcome of a forward pass.

    Attributes:
        status: ``passed``, ``failed``, ``rehearsed`` or ``skipped``.
        detail: one line: where the pass ran and its outputs (``on cpu: (2, 1), (2, 14)``), or why it did not.
        findings: what is wrong; empty unless the pass failed.
        outputs: the model's outputs with tensors on the CPU, or None if nothing was computed.
        on_cuda: whether the pass really ran on a CUDA device.
        peak_bytes: the peak memory on the CUDA device, measured or estimated, including weights; 0 on the
            CPU.
    """

    status: Literal["passed", "failed", "rehearsed", "skipped"]
    detail: str
    findings: list[Finding] = field(default_factory=list)
    outputs: Any = None
    on_cuda: bool = False
    peak_bytes: int = 0


def within(outcome: Outcome, most: int | None) -> Outcome:
    """Return the outcome, changed to ``failed`` if the pass needs more CUDA memory than `most` bytes.

    A pass on the CPU is not judged.
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
    """Put the model in eval mode without gradients inside the block, then restore every module's mode."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
