"""Does the checkpoint still load into the model? Declared, checked and visible.

The public names are imported on first use (PEP 562): importing the package imports nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint.checkpoint import Checkpoint, open_checkpoint
    from .checks.check import check
    from .checks.load import load
    from .checks.waivers import allow
    from .core.claim import Claim
    from .core.errors import CheckpointError, MisfitError, RecipeError
    from .core.findings import Finding, Stage
    from .core.tensor_spec import TensorSpec
    from .recipes.base import Edit, Operator
    from .recipes.operators.add import add
    from .recipes.operators.append import append
    from .recipes.operators.axes import permute, reshape, transpose
    from .recipes.operators.blocks import insert_block, stack
    from .recipes.operators.channels import reduce, repeat_channels
    from .recipes.operators.custom import custom
    from .recipes.operators.fold_batch_norm import fold_batch_norm
    from .recipes.operators.fold_weight_norm import fold_weight_norm
    from .recipes.operators.fusing import concat, split, stack_tensors, unbind
    from .recipes.operators.kernels import inflate, pad
    from .recipes.operators.merge_lora import merge_lora
    from .recipes.operators.rename import add_prefix, drop, rename, strip_prefix
    from .recipes.operators.resample import resample
    from .recipes.operators.select import select
    from .recipes.operators.tie import copy, tie
    from .recipes.operators.tile import tile
    from .recipes.operators.values import cast, scale
    from .recipes.operators.widen import widen
    from .recipes.plan import Write
    from .recipes.recipe import Recipe, Release, Releases
    from .report.report import Report

_HOMES = {
    "Checkpoint": "checkpoint.checkpoint",
    "CheckpointError": "core.errors",
    "Claim": "core.claim",
    "Edit": "recipes.base",
    "Finding": "core.findings",
    "MisfitError": "core.errors",
    "Operator": "recipes.base",
    "Recipe": "recipes.recipe",
    "RecipeError": "core.errors",
    "Release": "recipes.recipe",
    "Releases": "recipes.recipe",
    "Report": "report.report",
    "Stage": "core.findings",
    "TensorSpec": "core.tensor_spec",
    "Write": "recipes.plan",
    "allow": "checks.waivers",
    "check": "checks.check",
    "load": "checks.load",
    "open_checkpoint": "checkpoint.checkpoint",
}
"""The modules of the names that are not operators."""

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Claim",
    "Edit",
    "Finding",
    "MisfitError",
    "Operator",
    "Recipe",
    "RecipeError",
    "Release",
    "Releases",
    "Report",
    "Stage",
    "TensorSpec",
    "Write",
    "add",
    "add_prefix",
    "allow",
    "append",
    "cast",
    "check",
    "concat",
    "copy",
    "custom",
    "drop",
    "fold_batch_norm",
    "fold_weight_norm",
    "inflate",
    "insert_block",
    "load",
    "merge_lora",
    "open_checkpoint",
    "pad",
    "permute",
    "reduce",
    "rename",
    "repeat_channels",
    "resample",
    "reshape",
    "scale",
    "select",
    "split",
    "stack",
    "stack_tensors",
    "strip_prefix",
    "tie",
    "tile",
    "transpose",
    "unbind",
    "widen",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES.get(name, 'recipes.operators')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
