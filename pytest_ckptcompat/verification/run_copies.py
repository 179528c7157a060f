"""Run copies of a model on batches, in float64 or as they are. The model itself is not changed."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pytest_ckptcompat.tensors.difference import difference
from pytest_ckptcompat.tensors.nested import moved

from .wide_run import Batch, call, wider

if TYPE_CHECKING:
    from collections.abc import Sequence

BatchNorm = nn.modules.batchnorm._BatchNorm

Batches = dict[tuple[str, int], dict[str, torch.Tensor]]
"""Mode (``eval``, ``train``) and number of a batch -> output path -> floating tensor, on the CPU."""


@dataclass(frozen=True)
class Arithmetic:
    """Where a model runs, and the dtype to which everything is converted first; None for its own."""

    dtype: torch.dtype | None
    device: torch.device

    def __str__(self) -> str:
        return "in float64" if self.dtype else "in the models' own dtype"


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model.

    Attributes:
        batches: the outputs; those in train mode only if BatchNorm also ran in train mode.
        batchnorm: whether the model has BatchNorm.
        lowest: the lowest floating dtype in which anything was computed.
        random: whether another seed gave another output.
    """

    batches: Batches
    batchnorm: bool
    lowest: torch.dtype
    random: bool


def outputs(
    model: nn.Module, batches: Sequence[Batch], arithmetic: Arithmetic, method: str = "forward"
) -> Outputs:
    """Run a model on every batch: in eval mode, then with BatchNorm in train mode. Changes the model.

    Only BatchNorm is set to train mode: dropout would draw other masks if a layer has grown.
    """
    watch = _Watch()

    def run(batch: Batch, seed: int = 0) -> dict[str, torch.Tensor]:
        batch = moved(batch, arithmetic.device)
        found = call(model, batch, method, dtype=arithmetic.dtype, seed=seed, inside=watch)
        return {path: each for path, each in found.items() if each.is_floating_point() or each.is_complex()}

    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    model.eval()
    found = {("eval", number): run(batch) for number, batch in enumerate(batches)}
    again = run(batches[0], seed=1)
    random = any(difference(found["eval", 0].get(path, each), each) for path, each in again.items())
    for norm in norms:
        norm.train()
    with contextlib.suppress(ValueError):  # BatchNorm raises this for a single value per channel
        if norms:
            found |= {("train", number): run(batch) for number, batch in enumerate(batches)}
    return Outputs(found, bool(norms), watch.lowest, random)


def twin(model: nn.Module, arithmetic: Arithmetic) -> nn.Module:
    """Return a copy to run. It has its own buffers, and its own parameters if they are converted."""

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(arithmetic.device, wider(tensor.dtype, arithmetic.dtype), copy=True)

    memo: dict[int, Any] = {
        id(each): nn.Parameter(copied(each), False) if arithmetic.dtype else each
        for each in model.parameters()
    }
    memo |= {id(each): copied(each) for each in model.buffers()}
    for module in model.modules():
        for value in vars(module).values():
            # Computed, as by weight_norm. torch can't deepcopy these, and the forward pass computes them
            # again.
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = copied(value)
    return copy.deepcopy(model, memo)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the lowest floating dtype that any operation returns: some norms always use float32."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lowest = torch.float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(given):
            if isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
                self.lowest = coarser(self.lowest, leaf.dtype)
        return given


def coarser(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """Return the floating dtype with fewer digits."""
    return other if torch.finfo(other).eps > torch.finfo(one).eps else one
