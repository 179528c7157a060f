"""Does the checkpoint still load into the model? Declared, checked and visible.

The public names are imported on first use (PEP 562): importing the package imports nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .check import check
    from .checkpoint import Checkpoint, open_checkpoint
    from .errors import CheckpointError, RecipeError
    from .operators import append, rename, strip_prefix, tile
    from .recipe import Recipe
    from .report import Report
    from .rules import Finding, Stage
    from .tensors import TensorSpec
    from .waivers import allow

_HOMES = {
    "Checkpoint": "checkpoint",
    "CheckpointError": "errors",
    "Finding": "rules",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "Report": "report",
    "Stage": "rules",
    "TensorSpec": "tensors",
    "allow": "waivers",
    "append": "operators",
    "check": "check",
    "open_checkpoint": "checkpoint",
    "rename": "operators",
    "strip_prefix": "operators",
    "tile": "operators",
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
    "allow",
    "append",
    "check",
    "open_checkpoint",
    "rename",
    "strip_prefix",
    "tile",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
