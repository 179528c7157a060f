"""The operators of recipes, by the names that recipes and recipe files call them."""

from __future__ import annotations

from pytest_ckptcompat.recipes.base import Edit, Operator

from .append import append
from .axes import permute, transpose
from .blocks import insert_block, stack
from .cast import cast
from .custom import custom
from .drop import drop
from .fusing import concat, split
from .inflate import inflate
from .pad import pad
from .reduce import reduce
from .rename import add_prefix, rename, strip_prefix
from .repeat_channels import repeat_channels
from .resample import resample
from .scale import scale
from .select import select
from .tie import tie
from .tile import tile
from .widen import widen

OPERATORS: dict[str, type[Operator]] = {
    kind.__name__: kind
    for kind in (
        add_prefix,
        append,
        cast,
        concat,
        custom,
        drop,
        inflate,
        insert_block,
        pad,
        permute,
        reduce,
        rename,
        repeat_channels,
        resample,
        scale,
        select,
        split,
        stack,
        strip_prefix,
        tie,
        tile,
        transpose,
        widen,
    )
}
"""Name -> operator."""

__all__ = [
    "OPERATORS",
    "Edit",
    "Operator",
    "add_prefix",
    "append",
    "cast",
    "concat",
    "custom",
    "drop",
    "inflate",
    "insert_block",
    "pad",
    "permute",
    "reduce",
    "rename",
    "repeat_channels",
    "resample",
    "scale",
    "select",
    "split",
    "stack",
    "strip_prefix",
    "tie",
    "tile",
    "transpose",
    "widen",
]
