"""Run copies of a model on batches, in float64 or as they are. The model itself is not changed."""

from __future__ import annotations

import contextlib
import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pytest_ckptcompat.tensors.difference import difference
from pytest_ckptcompat.tensors.nested import mapped, moved, tensors
from pytest_ckptcompat.tensors.seeds import seeded

from .wide_run import Batch, widened

if TYPE_CHECKING:
    from collections.abc import Sequence

BatchNorm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Arithmetic:
    """Where a model runs, and whether everything is converted to float64 first."""

    wide: bool
    device: torch.device

    def __str__(self) -> str:
        return "in float64" if self.wide else "in the models' own dtype"


@dataclass(frozen=True)
class Outputs:
    """The outputs of a model.

    Attributes:
        modes: ``eval``, and ``train`` if BatchNorm also ran in train mode -> for each batch, output path ->
            floating tensor, on the CPU.
        batchnorm: whether the model has BatchNorm.
        lowest: the lowest floating dtype in which anything was computed.
        random: whether another seed gave another output.
    """

    modes: dict[str, list[dict[str, torch.Tensor]]]
    batchnorm: bool
    lowest: torch.dtype
    random: bool


def outputs(
    model: nn.Module, batches: Sequence[Batch], arithmetic: Arithmetic, method: str = "forward"
) -> Outputs:
    """Run a model on every batch: in eval mode, then with BatchNorm in train mode. Changes the model.

    Only BatchNorm is set to train mode: dropout would draw other masks if a layer has grown.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    watch = _Watch()
    model.eval()
    modes = {"eval": [_forward(model, batch, arithmetic, watch, method) for batch in batches]}
    again = _forward(model, batches[0], arithmetic, watch, method, seed=1)
    for norm in norms:
        norm.train()
    with contextlib.suppress(ValueError):  # BatchNorm raises this for a single value per channel
        if norms:
            modes["train"] = [_forward(model, batch, arithmetic, watch, method) for batch in batches]
    random = any(difference(modes["eval"][0].get(path, tensor), tensor) for path, tensor in again.items())
    return Outputs(modes, bool(norms), watch.lowest, random)


def twin(model: nn.Module, arithmetic: Arithmetic) -> nn.Module:
    """Return a copy to run. It has its own buffers, and its own parameters if they are widened."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = (
            nn.Parameter(_copied(parameter, arithmetic), False) if arithmetic.wide else parameter
        )
    for buffer in model.buffers():
        memo[id(buffer)] = _copied(buffer, arithmetic)
    for module in model.modules():
        for value in vars(module).values():
            # Computed, as by weight_norm. torch can't deepcopy these, and the forward pass computes them
            # again.
            if isinstance(value, torch.Tensor) and not value.is_leaf:
                memo[id(value)] = _copied(value, arithmetic)
    return copy.deepcopy(model, memo)


def _copied(tensor: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
    value = tensor.detach()
    if arithmetic.wide:
        value = _widened(value)
    return (
        value.to(arithmetic.device, copy=True) if value.dtype == tensor.dtype else value.to(arithmetic.device)
    )


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _forward(
    model: nn.Module, batch: Batch, arithmetic: Arithmetic, watch: _Watch, method: str, seed: int = 0
) -> dict[str, torch.Tensor]:
    # A forward pass may write into its arguments, so each gets a copy.
    change = (lambda tensor: _widened(tensor.clone())) if arithmetic.wide else torch.clone
    args, kwargs = (moved(mapped(part, change), arithmetic.device) for part in batch)
    with seeded(seed), torch.no_grad(), widened() if arithmetic.wide else nullcontext(), watch:
        found = (model if method == "forward" else getattr(model, method))(*args, **kwargs)
    return {
        path: tensor.detach().to("cpu", copy=True)
        for path, tensor in tensors(found)
        if tensor.layout == torch.strided and (tensor.is_floating_point() or tensor.is_complex())
    }


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
