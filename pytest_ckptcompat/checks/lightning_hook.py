"""Run a LightningModule's `on_load_checkpoint` as Lightning does, or report that it can't be run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.checkpoint.plain_metadata import plain_parts
from pytest_ckptcompat.core.errors import raised
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.models.lightning import HOOK, has_hook, hook_runs, run_hook
from pytest_ckptcompat.models.meta_copy import meta_copy

if TYPE_CHECKING:
    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.models.blueprint import Blueprint


def with_hook(ckpt: Checkpoint, blueprint: Blueprint, schema: nn.Module) -> tuple[Blueprint, nn.Module, str]:
    """Wrap the model so that it loads like Lightning loads it from a Trainer's checkpoint.

    Returns:
        How the model is built, the model on meta, and a note about the hook; ``""`` if there is none.
    """
    if not has_hook(schema):
        return blueprint, schema, ""
    name = f"{type(schema).__name__}.{HOOK}"
    if ckpt.state_dict_key != "state_dict":
        return blueprint, schema, f"{name} was not run: this is not a Trainer's checkpoint"
    others = plain_parts(ckpt.contents)
    try:
        run_hook(meta_copy(schema), ckpt.meta(), others)
    except (Exception, SystemExit) as error:
        # The hook gets only keys, shapes and plain values. If it needs more, that is not the checkpoint's
        # fault.
        return blueprint, schema, f"{name} was not run: {escape(raised(error), 120)}"

    def make() -> Any:
        return hook_runs(blueprint.make(), others)

    return replace(blueprint, make=make), hook_runs(schema, others), f"{name} was run"
