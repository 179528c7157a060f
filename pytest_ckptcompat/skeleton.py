"""A model whose constructor never computed a weight: memory for each tensor that a load will write."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Collection


def skeleton(
    schema: nn.Module, written: Collection[str], device: str | torch.device = "cpu"
) -> nn.Module | None:
    """The model that `schema` describes, with memory but without values; None where that is unsafe.

    It spares the random initialisation, which takes longer than reading the weights, and the detour over the
    CPU. It is safe only where the load writes every parameter and buffer, and where no value that the
    constructor computed lives outside them: a non-persistent buffer, a table kept as a plain attribute. Such
    models are to be built for real.

    Args:
        schema: the model on the meta device; left as it was.
        written: names of the parameters and buffers that the load will write; of tied ones, one will do.
        device: where the memory is.
    """
    memo: dict[int, Any] = {}
    covered = set()
    for name, tensor in _named_tensors(schema):
        if nn.parameter.is_lazy(tensor) or tensor.layout != torch.strided:
            return None
        memo.setdefault(id(tensor), None)
        if name in written:
            covered.add(id(tensor))
    if memo.keys() != covered:
        return None
    for _, tensor in _named_tensors(schema):
        memo[id(tensor)] = memo[id(tensor)] if memo[id(tensor)] is not None else _unfilled(tensor, device)
    with _Stray() as stray:
        model = copy.deepcopy(schema, memo)
    return None if stray.met else model


class _Stray(TorchFunctionMode):
    """Hears whether a copy meets a meta tensor that stands for no parameter or buffer: values are lost."""

    met = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # a parameter copies itself through its data
        if func == torch.Tensor.__deepcopy__ or func == torch.Tensor.data.__get__:  # type: ignore[attr-defined]
            self.met |= args[0].is_meta
        return func(*args, **(kwargs or {}))


def _unfilled(tensor: torch.Tensor, device: str | torch.device) -> torch.Tensor:
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if not isinstance(tensor, nn.Parameter):
        return empty
    parameter = nn.Parameter(empty, tensor.requires_grad)
    vars(parameter).update(vars(tensor))  # marks that code sets on parameters
    return parameter


def _named_tensors(model: nn.Module) -> chain[tuple[str, torch.Tensor]]:
    return chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
