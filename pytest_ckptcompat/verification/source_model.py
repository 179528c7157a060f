"""Check ``source_model=`` and load it with the old checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from pytest_ckptcompat.core.errors import raised
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.key_groups import group
from pytest_ckptcompat.tensors.state_dicts import on_meta, with_versions
from pytest_ckptcompat.tensors.unread import spared

from .comparison import Comparison, compare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn

LOADS_NOT = "source_model does not load the old checkpoint"
_MOST_LISTED = 3


class SourceError(Exception):
    """Raised if source_model does not fit the old checkpoint; `reason` is a short text."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def loaded(source: Callable[[], nn.Module], old: Mapping[str, Any]) -> nn.Module:
    """Load the source model with the old checkpoint, whose keys may share a prefix that the model lacks.

    Raises:
        SourceError: the model can't be built, or does not load the checkpoint.
    """
    try:
        model = source()
    except (Exception, SystemExit) as error:
        reason = "source_model could not be built"
        raise SourceError(reason, f"{reason}: {raised(error)}") from error
    if wrong := misfit(model, old):
        raise SourceError(LOADS_NOT, wrong)
    try:
        state = _unwrapped(old, model)
        with spared(model, state):
            model.load_state_dict(state, strict=False)
    except (Exception, SystemExit) as error:
        raise SourceError(LOADS_NOT, f"{LOADS_NOT}: {raised(error)}") from error
    return model


def misfit(model: nn.Module, old: Mapping[str, Any]) -> str:
    """Say what in the source model the old checkpoint does not fill, and what to do; ``""`` if nothing.

    Only shapes are compared, on any device. Extra keys in the checkpoint don't matter, nor does a missing key
    whose tensor is there under another name.
    """
    found = compare(model, on_meta(_unwrapped(old, model)))
    missing = set(_unfilled(model, found))
    shapes: dict[tuple[str, str, str], list[str]] = {}
    for each in found.findings:
        if each.rule == "load-error" and found.needs_values:
            continue  # the load with values will show this
        if each.rule in ("shape-mismatch", "load-error") or each.key in missing:
            shapes.setdefault((each.checkpoint, each.model, each.message), []).append(each.key)
    if not shapes:
        return ""
    said = [
        f"{escape(keys.pattern, 80)}{_times(len(keys.keys))} {_apart(checkpoint, there)}{message}".strip()
        for (checkpoint, there, message), names in shapes.items()
        for keys in group(names)
    ]
    more = f"; and {len(said) - _MOST_LISTED} more" if len(said) > _MOST_LISTED else ""
    counted = f"{len(found.mismatched)} mismatched, {len(missing)} missing"
    return (
        f"{LOADS_NOT} ({counted}): give the model that the checkpoint was saved from, or leave source_model "
        f"out; {'; '.join(said[:_MOST_LISTED])}{more}"
    )


def _unfilled(model: nn.Module, found: Comparison) -> Iterator[str]:
    """Return the missing keys whose tensor is not filled under another name."""
    held = model.state_dict(keep_vars=True)
    filled = {id(value) for key, value in held.items() if key not in found.missing}
    return (key for key in found.missing if id(held.get(key)) not in filled)


def _times(count: int) -> str:
    return f" ×{count:,}" if count > 1 else ""


def _apart(checkpoint: str, there: str) -> str:
    if checkpoint and there:
        return f"is {checkpoint}, in source_model {there}"
    return f"is missing, in source_model {there}" if there else ""


def _unwrapped(old: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """Strip a wrapper's prefix (``module.``) that every key has and no key of the model has."""
    prefix = next(iter(old), "").partition(".")[0] + "."
    if not all(key.startswith(prefix) for key in old) or any(
        key.startswith(prefix) for key in model.state_dict()
    ):
        return old
    state = with_versions(old, old)
    consume_prefix_in_state_dict_if_present(state, prefix)
    return state
