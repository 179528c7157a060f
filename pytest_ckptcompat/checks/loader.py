"""Test a repository's own loading function: run it as in production, and trace its model to the file."""

from __future__ import annotations

import warnings
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.checkpoint.checkpoint import candidates
from pytest_ckptcompat.core.errors import CheckpointError, ModelError, RecipeError, raised
from pytest_ckptcompat.core.escape import escape, listed
from pytest_ckptcompat.core.findings import Finding, finding
from pytest_ckptcompat.core.imports import imported
from pytest_ckptcompat.core.key_groups import group
from pytest_ckptcompat.core.redaction import is_url
from pytest_ckptcompat.files.paths import display
from pytest_ckptcompat.models.blueprint import Blueprint, blueprint, named
from pytest_ckptcompat.models.meta_copy import meta_copy
from pytest_ckptcompat.tensors.nested import tensors
from pytest_ckptcompat.tensors.seeds import seeded
from pytest_ckptcompat.tensors.surroundings import place_kept
from pytest_ckptcompat.verification.comparison import Comparison
from pytest_ckptcompat.verification.computed import Computed
from pytest_ckptcompat.verification.loaded import not_finite
from pytest_ckptcompat.verification.loader_faults import faults
from pytest_ckptcompat.verification.origins import BY_LINES, Origins, trace
from pytest_ckptcompat.verification.verify import of_steps, verify

from . import header_stages as header
from .log import Stopped
from .subject import Batch, Subject

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.checkpoint.contents import Contents
    from pytest_ckptcompat.core.rules import Kind

    from .arguments import CheckArguments
    from .fitting import Opened
    from .log import Log

_SEED = 0x5EED_10AD
"""An unlikely seed, so that an untrained checkpoint differs from what the constructor draws here."""

_GROUPS = 3  # how many groups of keys a line lists


@dataclass(frozen=True)
class Loader:
    """A loading function, and the arguments it is called with.

    Attributes:
        name: the name in reports.
        function: ``(path) -> model``, or ``(model, path)`` where a model is declared.
        path: the path of the checkpoint, as given.
        model: builds the model to load in place; None if the function makes the model.
    """

    name: str
    function: Any
    path: str
    model: Blueprint | None

    def run(self, seed: int = _SEED) -> tuple[nn.Module, bool]:
        """Run the function.

        Returns:
            The loaded model, and whether it is the model that the function was given.

        Raises:
            ModelError: the model can't be built, or the function raised or returned no model.
        """
        given = None if self.model is None else self.model.build(seed)
        arguments = (self.path,) if given is None else (given, self.path)
        try:
            with seeded(seed), place_kept(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded = self.function(*arguments)
        except (Exception, SystemExit) as error:
            called = "(path)" if given is None else "(model, path), since model= is given"
            trace = error.__traceback__
            refused = isinstance(error, TypeError) and trace is not None and trace.tb_next is None
            how = f" is called with {called}:" if refused else " raised"
            raise ModelError(f"{self.name}{how} {raised(error)}") from error
        if isinstance(loaded, nn.Module):
            return loaded, loaded is given
        if given is not None:  # it may return which keys it loaded
            return given, True
        what = f"a {type(loaded).__name__}" if loaded is not None else "nothing"
        raise ModelError(
            f"{self.name} returned {what}, not the model: name a function that returns the nn.Module alone"
        )

    def before(self) -> Mapping[str, Any]:
        """Return the state dict of the model as it was before the load."""
        assert self.model is not None
        return state_of(self.model.build(_SEED))

    def again(self) -> Mapping[str, Any] | None:
        """Return the state dict after another run with another seed, or None if that fails."""
        try:
            return state_of(self.run(_SEED + 1)[0])
        except (ModelError, MemoryError):
            return None


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a model's state dict, including those that quantized modules keep in pairs.

    Raises:
        ModelError: the model's own code raised.
    """
    found = {}
    try:
        for key, value in model.state_dict().items():
            if isinstance(value, torch.Tensor):
                found[key] = value
            elif isinstance(value, (tuple, list)) and not key.endswith("_extra_state"):
                found |= {f"{key}{path}": tensor for path, tensor in tensors(value)}
    except Exception as error:
        raise ModelError(f"the state_dict() of its model: {raised(error)}") from error
    return found


def load_stage(
    loader: Loader, opened: Opened, arguments: CheckArguments, log: Log
) -> tuple[Subject, nn.Module, bool]:
    """Run the loader, and find the state dict of its model in the checkpoint.

    Returns:
        The subject of the check, the model, and whether that was loaded in place.
    """
    log.loader = loader.name
    fault: Finding | None = None
    ckpt, why = opened.usual, ""
    try:
        model, in_place = loader.run()
        state = state_of(model)
        if not callable(getattr(model, arguments.method, None)):
            raise ModelError(f"{named(type(model))} has no method {arguments.method!r}, which method= names")
        ckpt, why = opened.chosen(state, arguments.recipe)
    except ModelError as error:
        fault = finding("loader-error", message=str(error))
    if ckpt is None:
        reason = "the loader failed" if fault else "the checkpoint can't be read"
        log.stop(fault or CheckpointError(opened.ambiguous), reason, "open")
    header.note_opened(ckpt, why, log, arguments.recipe)
    if fault:
        log.stage("recipe", "skipped", "the loader failed")
        log.stage("compare", "skipped", "the loader failed")
        log.stop(fault, "the loader failed", "load")
    with _examining(log, "load"):
        with suppress(NotImplementedError):  # an exported program has no modes
            model.eval()
        blueprint, schema = Blueprint(named(type(model)), lambda: model), meta_copy(model)
        subject = Subject(arguments, ckpt, blueprint, schema, None, Batch(None), "no values were read", log)
        subject, _ = header.recipe_stage(subject)
        log.stage("compare", "skipped", "the loader decides which keys it loads")
        log.judged("load", not_finite(model), f"by {loader.name}")
    return subject, model, in_place


@contextmanager
def _examining(log: Log, stage: Kind) -> Iterator[None]:
    """Stop the check if a loader's model can't be examined: its code raises, or it has no plain values."""
    try:
        yield
    except Stopped:
        raise
    except CheckpointError as error:
        log.stop(error, "the values can't be read", stage)
    except RecipeError as error:
        log.stop(error, "the recipe does not apply to the values", stage)
    except Exception as error:
        text = f"the values of its model can't be compared: {raised(error)}"
        log.stop(finding("loader-error", message=text), "the values can't be compared", stage)


def trace_stage(loader: Loader, subject: Subject, model: nn.Module, in_place: bool) -> None:
    """Trace the model's tensors to the checkpoint, and prove what the recipe promises."""
    ckpt, recipe, log = subject.ckpt, subject.recipe, subject.log
    with _examining(log, "verify"), ckpt.progress():
        state, old = state_of(model), ckpt.stored()
        applied = recipe.run(old, state)
        origins = trace(state, applied.state_dict, Computed(recipe, old, state, applied))
        found = faults(
            origins,
            state,
            applied.state_dict,
            parameters={name for name, _ in model.named_parameters(remove_duplicate=False)},
            elsewhere=lambda tensors: _in_other_parts(tensors, ckpt),
            before=loader.before if in_place else None,
            again=loader.again,
        )
        promises, broken = verify(of_steps(recipe, applied, old, state))
    log.promises += promises
    log.comparison = Comparison(matched=len(origins.held), total=origins.total)
    log.judged("verify", [*found, *broken], _summary(origins))
    if log.failed:
        raise Stopped("the loader did not load what the checkpoint has")


def _in_other_parts(tensors: Mapping[str, Any], ckpt: Checkpoint) -> dict[str, str]:
    """Find tensors in other state dicts of the same file, such as an average; return key -> where."""
    found: dict[str, str] = {}
    for other in candidates(ckpt.contents):
        if not f"{ckpt.state_dict_key}.".startswith(f"{other.state_dict_key}.".lstrip(".")):
            there = trace({key: each for key, each in tensors.items() if key not in found}, other.stored())
            where = f"holds the values of {escape(other.state_dict_key, 60)!r}"
            found |= dict.fromkeys(there.evidence, where)
    return found


def _summary(origins: Origins) -> str:
    """Summarise the trace: ``61 of 63 keys hold the checkpoint's values``, the changes, and the constants."""
    told = f"{len(origins.held)} of {origins.total} keys hold the checkpoint's values"
    changes = Counter(origin.how for origin in origins.held.values() if origin.how)
    changes_told = [
        f"{count} {'from several tensors or lines' if text == BY_LINES else text}"
        for text, count in changes.items()
    ]
    if changes_told:
        told += f" ({', '.join(changes_told)})"
    groups = group(origins.constants)
    if not groups:
        return told
    shown = [f"{escape(each.pattern, 60)} ({origins.constants[each.keys[0]]})" for each in groups]
    return f"{told}; constants are not evidence: {listed(shown, _GROUPS)}"


def prepared(arguments: CheckArguments, path: str, contents: Contents, log: Log) -> Loader:
    """Prepare the loader."""
    if is_url(path) or (not Path(path).exists() and not {"*", "?"}.isdisjoint(path)):
        text = f"{display(path)}: a loader gets the path of one file or folder, not a URL or a pattern"
        log.stop(finding("no-checkpoint", message=text), "there is no path to give to the loader", "open")
    try:
        function = imported(arguments.loader) if isinstance(arguments.loader, str) else arguments.loader
    except ModelError as error:
        log.stop(error, "the loader can't be imported")
    try:
        model_args = arguments.arguments_of_model(contents)
        model = None if arguments.model is None else blueprint(arguments.model, model_args)
    except (CheckpointError, ModelError) as error:
        log.stop(finding("model-error", message=str(error)), "the model can't be built")
    return Loader(named(function), function, path, model)
