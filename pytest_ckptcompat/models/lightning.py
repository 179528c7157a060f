"""Load as Lightning does: `on_load_checkpoint` receives the whole checkpoint first and may change it."""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

HOOK = "on_load_checkpoint"


def has_hook(model: nn.Module) -> bool:
    """Return whether the model is a LightningModule that overrides `on_load_checkpoint`."""
    kinds = type(model).__mro__
    if not any(kind.__name__ == "LightningModule" and _is_lightnings(kind) for kind in kinds):
        return False
    owner = next((kind for kind in kinds if HOOK in vars(kind)), None)
    return owner is not None and not _is_lightnings(owner)


def _is_lightnings(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("lightning", "pytorch_lightning")


def run_hook(model: nn.Module, state_dict: Mapping[str, Any], others: Mapping[str, Any]) -> Any:
    """Call the hook and return the state dict that it leaves. Errors of the hook are not caught.

    Args:
        model: the model with the hook.
        state_dict: the checkpoint's state dict, which is not changed.
        others: the other parts of the checkpoint, as plain values.
    """
    state = OrderedDict(state_dict)
    if (metadata := getattr(state_dict, "_metadata", None)) is not None:
        state._metadata = metadata  # type: ignore[attr-defined]
    contents = {**deepcopy(dict(others)), "state_dict": state}
    getattr(model, HOOK)(contents)
    return contents["state_dict"]


def hook_runs(model: nn.Module, others: Mapping[str, Any]) -> nn.Module:
    """Make a module run its hook whenever a state dict is loaded into it or a copy of it."""
    kind = type(model)

    def load_state_dict(self: Any, state_dict: Mapping[str, Any], *rest: Any, **named: Any) -> Any:
        return kind.load_state_dict(self, run_hook(self, state_dict, others), *rest, **named)

    about = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, _MARK: kind}
    model.__class__ = type(kind.__name__, (kind,), {"load_state_dict": load_state_dict, **about})
    return model


def as_it_was(model: nn.Module) -> nn.Module:
    """Give a module its own class back, as the user's code expects."""
    model.__class__ = vars(type(model)).get(_MARK, type(model))
    return model


_MARK = "_ckptcompat_own_class"
