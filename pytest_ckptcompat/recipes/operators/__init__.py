"""The operators of recipes, by their names in recipes and recipe files."""

from __future__ import annotations

from pytest_ckptcompat.recipes.base import Edit, Operator

from .add import add
from .append import append
from .axes import permute, transpose
from .blocks import insert_block
from .cast import cast
from .copy import copy
from .custom import custom
from .drop import drop
from .fold_batch_norm import fold_batch_norm
from .fold_weight_norm import fold_weight_norm
from .fusing import concat, split
from .inflate import inflate
from .merge_lora import merge_lora
from .pad import pad
from .reduce import reduce
from .rename import add_prefix, rename, strip_prefix
from .repeat_channels import repeat_channels
from .resample import resample
from .reshape import reshape
from .scale import scale
from .select import select
from .stack import stack
from .stacking import stack_tensors, unbind
from .tie import tie
from .tile import tile
from .widen import widen

__all__ = [
    "OPERATORS",
    "Edit",
    "Operator",
    "add",
    "add_prefix",
    "append",
    "cast",
    "concat",
    "copy",
    "custom",
    "drop",
    "fold_batch_norm",
    "fold_weight_norm",
    "inflate",
    "insert_block",
    "merge_lora",
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

OPERATORS: dict[str, type[Operator]] = {
    name: globals()[name] for name in __all__ if name not in ("OPERATORS", "Edit", "Operator")
}
"""All built-in operators by name."""
