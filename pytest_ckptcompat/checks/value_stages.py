"""The stages that need the values of a checkpoint, except for verify: load, forward, optimizer."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from pytest_ckptcompat.checkpoint.checkpoint import outer_object
from pytest_ckptcompat.checkpoint.contents import read_contents
from pytest_ckptcompat.core.claim import UNASKED
from pytest_ckptcompat.core.errors import CheckpointError, ModelError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import finding
from pytest_ckptcompat.files.layouts import optimizer_beside
from pytest_ckptcompat.forward.declared_inputs import known_inputs
from pytest_ckptcompat.forward.outcome import within
from pytest_ckptcompat.forward.real import forward
from pytest_ckptcompat.forward.rehearsal import rehearse
from pytest_ckptcompat.models.skeleton import LARGE, skeleton
from pytest_ckptcompat.optimizer.stage import check_optimizer
from pytest_ckptcompat.optimizer.state import saved_states
from pytest_ckptcompat.tensors.footprint import weights
from pytest_ckptcompat.tensors.unread import spared, unread
from pytest_ckptcompat.verification.loaded import not_finite, tied_conflicts
from pytest_ckptcompat.verification.strict_load import load_fault

from .fitting import target_of
from .log import Stopped, errors
from .verify_stage import kept_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.forward.outcome import Outcome
    from pytest_ckptcompat.recipes.applied import Applied
    from pytest_ckptcompat.verification.comparison import Comparison

    from .arguments import CheckArguments
    from .subject import Subject


def unneeded(arguments: CheckArguments, ckpt: Checkpoint, *, wants_model: bool) -> str:
    """Return why no values have to be read, or ``""``."""
    if ckpt.valueless:
        return f"{ckpt.valueless}, and the loader was not run" if arguments.loader else ckpt.valueless
    if wants_model:
        return ""
    if arguments.device in ("none", "rehearse"):
        return f"device={arguments.device} reads headers only"
    if arguments.inputs is None and arguments.recipe is None and arguments.optimizer is None:
        return UNASKED
    return ""


def load_stage(subject: Subject) -> tuple[nn.Module, Applied, Mapping[str, Any]]:
    """Load the values as the model's own ``load_state_dict`` does.

    Returns:
        The model in eval mode, the result of the recipe, and the old state dict.
    """
    log, old = subject.log, subject.ckpt.stored(once=True)
    with loading(subject, old) as applied:
        model = _loaded(subject, applied)
    model.eval()
    found = [*not_finite(model), *tied_conflicts(model, applied.state_dict)]
    log.judged("load", found, f"{strictly(log.comparison)}, on the CPU")
    return model, applied, old


def strictly(comparison: Comparison) -> str:
    """Return in words how a checkpoint is loaded after the comparison."""
    return "strictly" if comparison.fits else "without the waived keys"


@contextmanager
def loading(subject: Subject, old: Mapping[str, Any]) -> Iterator[Applied]:
    """Yield the result of the recipe on the old state dict, to be loaded inside the block."""
    log = subject.log
    if log.comparison.mismatched:
        raise Stopped("shapes differ (waived): nothing can be loaded")
    try:
        applied = subject.recipe.run(old, target_of(subject.recipe, subject.schema, subject.blueprint.build))
        if withheld := unread(applied.state_dict):
            raise Stopped(withheld)
        yield applied
    except Stopped:
        raise
    except ModelError as error:
        log.stop(error, "the model can't be built", "load")
    except CheckpointError as error:
        log.stop(error, "the values can't be read", "load")
    except (Exception, SystemExit) as error:
        refused = finding("load-error", message=escape(load_fault(error), limit=500))
        log.stop(refused, "the checkpoint does not load", "load")


def _loaded(subject: Subject, applied: Applied) -> nn.Module:
    """Return the loaded model. A large one is built without drawing random values first."""
    strict, build = subject.log.comparison.fits, subject.blueprint.build

    def load(model: nn.Module) -> None:
        with subject.ckpt.progress(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with spared(model, applied.state_dict):
                model.load_state_dict(applied.state_dict, strict=strict)

    model = skeleton(build, load) if strict and weights(subject.schema) > LARGE else None
    if model is None:
        model = build()
        load(model)
    return model


def forward_stage(subject: Subject, model: nn.Module | None) -> bool:
    """Run or rehearse the forward pass of the loaded model, if any; return whether it really ran on CUDA."""
    arguments, inputs, schema, log = subject.arguments, subject.inputs, subject.schema, subject.log
    device, most = arguments.device or "auto", arguments.max_memory

    def noted(outcome: Outcome, name: str = "") -> Outcome:
        outcome = within(outcome, most) if name or device != "auto" or outcome.on_cuda else outcome
        told = {(each.rule, each.key) for each in log.findings}  # what fails on the CPU fails there too
        log.add(*(found for found in outcome.findings if (found.rule, found.key) not in told))
        log.stage("forward", outcome.status, outcome.detail, name, outcome.findings)
        return outcome

    if device == "none":
        log.stage("forward", "skipped", "device=none reads headers only")
    elif inputs is None:
        known = "; the model knows some: inputs='auto'" if known_inputs(schema) else ""
        log.stage("forward", "skipped", f"no inputs declared{known}")
    elif device == "rehearse":
        noted(rehearse(schema, inputs))
    elif model is None:
        log.stage("forward", "skipped", subject.reason)
        if device == "auto":
            noted(rehearse(schema, inputs), "forward-cuda")
    elif device != "auto":
        return noted(forward(model, inputs, device)).on_cuda
    elif torch.cuda.is_available():
        return noted(forward(model, inputs, "cuda")).on_cuda
    else:
        ran = noted(forward(model, inputs, "cpu", or_skip=True))
        noted(rehearse(model, inputs, ran_on_cpu=ran.status == "passed"), "forward-cuda")
    return False


def optimizer_stage(subject: Subject, model: nn.Module | None) -> None:
    """Grow the optimizer's state, load it, and take one step."""
    arguments, ckpt, log = subject.arguments, subject.ckpt, subject.log
    if arguments.optimizer is None or model is None:
        undeclared = arguments.optimizer is None
        return log.stage("optimizer", "skipped", "none declared" if undeclared else subject.reason)
    try:
        holder = optimizer_holder(ckpt, arguments.optimizer_state)
    except CheckpointError as error:
        return log.judged("optimizer", [finding("optimizer-error", message=str(error))], "it can't be read")
    source = None if subject.source is None else subject.source.build()
    promises, found = check_optimizer(arguments.optimizer, ckpt, subject.recipe, model, source, holder)
    log.promises += promises
    if not errors(found) and not any(promise.status == "kept" for promise in promises):
        log.add(*found)
        return log.stage("optimizer", "skipped", "; ".join(promise.detail for promise in promises))
    return log.judged("optimizer", found, kept_of(promises))


def optimizer_holder(ckpt: Checkpoint, path: str | None) -> Checkpoint:
    """Return the holder of the optimizer's state: the named file, the checkpoint, or the file beside it.

    Raises:
        CheckpointError: the file can't be read.
    """
    if path is None and not saved_states(ckpt.wrapper):
        path = optimizer_beside(ckpt.path)
    return ckpt if path is None else outer_object(read_contents(path, limits=ckpt.contents.limits))
