"""What a check would suggest, asked without the check."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import nn

from pytest_ckptcompat.models.meta_copy import meta_copy
from pytest_ckptcompat.suggest.search import Suggestion, suggest
from pytest_ckptcompat.verification.comparison import compare

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pytest_ckptcompat.recipes.recipe import Recipe


def answer(state_dict: Mapping[str, Tensor], model: nn.Module) -> Suggestion:
    """What the search finds, from shapes and the model's modules alone."""
    schema = meta_copy(model)
    made: dict[int, Tensor] = {}
    shapes = OrderedDict(
        (key, made.setdefault(value.data_ptr() or id(value), value.to("meta")))
        for key, value in state_dict.items()
    )
    target = schema.state_dict()
    modules = dict(schema.named_modules(remove_duplicate=False))
    return suggest(
        shapes, target, lambda recipe: compare(schema, recipe.apply(shapes, target)).differing, modules
    )


def suggested(state_dict: Mapping[str, Tensor], model: nn.Module) -> Recipe | None:
    """The recipe that makes it load, if one is found."""
    return answer(state_dict, model).recipe


def lived(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with values that are all different, none as constructed."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.2)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=draw) * 0.3)
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=draw))
    return model.eval()


def loaded(model: nn.Module, state_dict: Mapping[str, Tensor], recipe: Recipe) -> nn.Module:
    """The model with what the recipe makes of a state dict."""
    model.load_state_dict(recipe.apply(state_dict, model.state_dict()), strict=True)
    return model.eval()


class Tensors(nn.Module):
    """Parameters of given shapes, by names with dots."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        for key, shape in shapes.items():
            put(self, key, nn.Parameter(torch.randn(shape)))


def put(root: nn.Module, key: str, value: nn.Module | nn.Parameter) -> None:
    """Put a module or a parameter under a name with dots."""
    *path, leaf = key.split(".")
    for name in path:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    setattr(root, leaf, value)
