"""Does the checkpoint still load into the model? Declared, checked and visible.

The public names are imported on first use (PEP 562): importing the package imports nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, open_checkpoint
    from .errors import CheckpointError, RecipeError
    from .operators.append import append
    from .operators.axes import permute, transpose
    from .operators.blocks import insert_block, stack
    from .operators.cast import cast
    from .operators.custom import custom
    from .operators.drop import drop
    from .operators.fusing import concat, split
    from .operators.inflate import inflate
    from .operators.pad import pad
    from .operators.prefixes import add_prefix, strip_prefix
    from .operators.reduce import reduce
    from .operators.renaming import rename
    from .operators.repeat_channels import repeat_channels
    from .operators.resample import resample
    from .operators.scale import scale
    from .operators.select import select
    from .operators.tie import tie
    from .operators.tile import tile
    from .operators.widen import widen
    from .pipeline import check
    from .recipe import Recipe
    from .reports.report import Report
    from .rules import Finding, Stage
    from .tensors import TensorSpec
    from .waivers import allow

_HOMES = {
    "Checkpoint": "checkpoint",
    "CheckpointError": "errors",
    "Finding": "rules",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "Report": "reports.report",
    "Stage": "rules",
    "TensorSpec": "tensors",
    "add_prefix": "operators",
    "allow": "waivers",
    "append": "operators",
    "cast": "operators",
    "check": "pipeline",
    "concat": "operators",
    "custom": "operators",
    "drop": "operators",
    "inflate": "operators",
    "insert_block": "operators",
    "open_checkpoint": "checkpoint",
    "pad": "operators",
    "permute": "operators",
    "reduce": "operators",
    "rename": "operators",
    "repeat_channels": "operators",
    "resample": "operators",
    "scale": "operators",
    "select": "operators",
    "split": "operators",
    "stack": "operators",
    "strip_prefix": "operators",
    "tie": "operators",
    "tile": "operators",
    "transpose": "operators",
    "widen": "operators",
}

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Finding",
    "Recipe",
    "RecipeError",
    "Report",
    "Stage",
    "TensorSpec",
    "add_prefix",
    "allow",
    "append",
    "cast",
    "check",
    "concat",
    "custom",
    "drop",
    "inflate",
    "insert_block",
    "open_checkpoint",
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
