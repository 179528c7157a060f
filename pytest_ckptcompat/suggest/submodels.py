"""Find parts of a checkpoint that are each the whole model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .templates import Shapes

WRAPPERS = {
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    *("model", "net", "network"),
}
"""Names that only ever wrap a whole model."""


def is_wrapper(prefix: str) -> bool:
    """Return whether each part of a prefix is a name that only ever wraps a whole model."""
    return WRAPPERS.issuperset(prefix.rstrip(".").split("."))


def submodels(checkpoint: Shapes, model: Shapes) -> list[str]:
    """Find prefixes under which the checkpoint has every key of the model in the same shape.

    Args:
        checkpoint: the checkpoint's keys.
        model: the model's keys.
    """
    if len(model) < 2 or len(checkpoint) < len(model) or any(key in checkpoint for key in model):
        return []
    first = next(iter(model))
    prefixes = [key.removesuffix(first) for key in checkpoint if key.endswith(f".{first}")]
    return [
        prefix
        for prefix in prefixes
        if all(checkpoint.get(f"{prefix}{key}", ()) == shape for key, shape in model.items())
    ]
