"""The operators of recipes, by their names in recipes and recipe files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .add import add
from .append import append
from .axes import permute, reshape, transpose
from .blocks import insert_block, stack
from .channels import reduce, repeat_channels
from .custom import custom
from .fold_batch_norm import fold_batch_norm
from .fold_weight_norm import fold_weight_norm
from .fusing import concat, split, stack_tensors, unbind
from .kernels import inflate, pad
from .merge_lora import merge_lora
from .rename import add_prefix, drop, rename, strip_prefix
from .resample import resample
from .select import select
from .tie import copy, tie
from .tile import tile
from .values import cast, scale
from .widen import widen

if TYPE_CHECKING:
    from pytest_ckptcompat.recipes.base import Operator

__all__ = [
    "OPERATORS", "add", "add_prefix", "append", "cast", "concat", "copy", "custom", "drop",
    "fold_batch_norm", "fold_weight_norm", "inflate", "insert_block", "merge_lora", "pad", "permute",
    "reduce", "rename", "repeat_channels", "resample", "reshape", "scale", "select", "split", "stack",
    "stack_tensors", "strip_prefix", "tie", "tile", "transpose", "unbind", "widen",
]  # fmt: skip

OPERATORS: dict[str, type[Operator]] = {name: globals()[name] for name in __all__ if name != "OPERATORS"}
"""All built-in operators by name."""
