"""How Lightning loads: `on_load_checkpoint` sees the whole checkpoint first, and may change it."""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

HOOK = "on_load_checkpoint"


def has_hook(model: nn.Module) -> bool:
    """Whether a LightningModule has a hook of its own."""
    kinds = type(model).__mro__
    if not any(kind.__name__ == "LightningModule" and _is_lightnings(kind) for kind in kinds):
        return False
    owner = next((kind for kind in kinds if HOOK in vars(kind)), None)
    return owner is not None and not _is_lightnings(owner)


def _is_lightnings(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("lightning", "pytorch_lightning")


def run_hook(model: nn.Module, state_dict: Mapping[str, Any], others: Mapping[str, Any]) -> Any:
    """The state dict as the hook leaves it; errors are its own.

    Args:
        model: whose hook is called.
        state_dict: of the checkpoint; left as it is.
        others: what else is in the checkpoint, as plain values.
    """
    state = OrderedDict(state_dict)
    if (metadata := getattr(state_dict, "_metadata", None)) is not None:
        state._metadata = metadata  # type: ignore[attr-defined]
    contents = {**deepcopy(dict(others)), "state_dict": state}
    getattr(model, HOOK)(contents)
    return contents["state_dict"]


def hook_runs(model: nn.Module, others: Mapping[str, Any]) -> nn.Module:
    """Have a module run its hook whenever a state dict is loaded into it, or into a copy of it."""
    kind = type(model)

    def load_state_dict(self: Any, state_dict: Mapping[str, Any], *rest: Any, **named: Any) -> Any:
        return kind.load_state_dict(self, run_hook(self, state_dict, others), *rest, **named)

    about = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, _MARK: kind}
    model.__class__ = type(kind.__name__, (kind,), {"load_state_dict": load_state_dict, **about})
    return model


def as_it_was(model: nn.Module) -> nn.Module:
    """The module of its own class again, as the user's code expects it."""
    model.__class__ = vars(type(model)).get(_MARK, type(model))
    return model


_MARK = "_ckptcompat_own_class"
