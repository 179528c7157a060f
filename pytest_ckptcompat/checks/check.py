"""The check, which runs its stages in order."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint, open_checkpoint
from pytest_ckptcompat.core.errors import CheckpointError, ModelError, RecipeError
from pytest_ckptcompat.core.findings import finding
from pytest_ckptcompat.core.imports import imported
from pytest_ckptcompat.core.redaction import public
from pytest_ckptcompat.files.paths import display_from, is_reference
from pytest_ckptcompat.models.lightning import as_it_was
from pytest_ckptcompat.models.sharded import Sharded
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.tensors.surroundings import undisturbed

from . import header_stages as header
from . import loader
from . import value_stages as values
from .arguments import Arguments, CheckArguments
from .lightning_hook import with_hook
from .log import Log, Stopped, unforeseen
from .past_checkpoint import Place, Question, open_past
from .rollback import rollback_stage
from .sharded_stages import sharded_stages
from .subject import Batch, Subject, inputs_of
from .verify_stage import verify_stage, verify_unread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from os import PathLike
    from typing import Unpack

    from torch import nn

    from pytest_ckptcompat.core.rules import Kind, Severity
    from pytest_ckptcompat.report.report import Report

    from .fitting import Opened


STAGES: tuple[Kind, ...] = ("open", "recipe", "compare", "load", "verify", "forward", "optimizer")
"""The stages that every report has a line for."""

_INTEGERS_OF_A_COMMIT = 64_000_000
"""The most characters of integers that a commit's model answers with; unlike a lock, nobody reads them."""


def check(
    model: Any = None,
    ckpt: str | PathLike[str] | Checkpoint | None = None,
    **arguments: Unpack[Arguments],
) -> Report:
    """Check that a checkpoint still fits a model, with the arguments of ``@pytest.mark.ckpt_compat``.

    Args:
        model: a callable giving the model, ``"package.module:name"``, or an ``nn.Module``, which is not
            changed. It may be left out if there is a ``loader``.
        ckpt: a path, or the result of `open_checkpoint`.
        **arguments: ``recipe``, ``inputs``, ``source_model``, ``state_dict_key``, ``protect``, ``allow``,
            ``device``, ``optimizer``, ``optimizer_state``, ``direction``, ``model_args``, ``method``,
            ``max_memory`` and ``loader``, as for the marker. ``pytest --markers`` describes each.

    Returns:
        The report. A checkpoint that can't be read or a recipe that does not apply is a finding in it.

    Raises:
        ValueError: an argument is unknown or of a wrong type.
    """
    declared = CheckArguments.of(model=model, **arguments)
    if ckpt is None:
        raise ValueError("ckpt= is missing: the path of a checkpoint, or what open_checkpoint gave")
    if isinstance(ckpt, Checkpoint):
        if declared.state_dict_key is None:  # the caller has already chosen the state dict
            declared = replace(declared, state_dict_key=ckpt.state_dict_key)
        return Check(declared, ckpt.path, ckpt.at).run()
    path = os.fsdecode(ckpt)
    return Check(declared, path, lambda key: open_checkpoint(path, key)).run()


@dataclass
class Check:
    """A check. `run` returns the report. `model` is then the loaded model and `ckpt` the checkpoint, if any.

    Attributes:
        arguments: the declared arguments.
        path: the path of the checkpoint, as given.
        open: opens the checkpoint; gets the state dict key, or None; called once.
        severities: rule -> severity, as ``ckpt_severity`` sets them.
        require_cuda: fail unless the forward pass really ran on CUDA.
        wants_model: load the values even if no stage needs them (``ckpt_model``).
        place: where to look for past commits and keep their answers.
        shown: the name of the checkpoint in the report; ``""`` for its path.
        drift: whether to compare the checkpoint, the lock of the last release, with today's model.
    """

    arguments: CheckArguments
    path: str
    open: Callable[[str | None], Checkpoint]
    severities: Mapping[str, Severity] = field(default_factory=dict)
    require_cuda: bool = False
    wants_model: bool = False
    place: Place = field(default_factory=Place)
    shown: str = ""
    drift: bool = False
    model: nn.Module | None = field(default=None, init=False)
    report: Report | None = field(default=None, init=False)
    ckpt: Checkpoint | None = field(default=None, init=False)
    _schema: nn.Module | None = field(default=None, init=False, repr=False)
    _model_name: str = field(default="", init=False, repr=False)

    @undisturbed()
    def run(self) -> Report:
        """Run every stage that can be run, and note for the others why they were not."""
        log = Log(self.arguments.allow, self.severities)
        self._model_name = _named(
            self.arguments.loader if self.arguments.model is None else self.arguments.model
        )
        on_cuda = False
        try:
            on_cuda = self._judged(log)
        except Stopped as stop:
            done = {stage.name for stage in log.stages}
            for kind in STAGES:
                if kind not in done:
                    undeclared = kind == "optimizer" and self.arguments.optimizer is None
                    log.stage(kind, "skipped", "none declared" if undeclared else stop.reason)
        if self.require_cuda and not on_cuda:
            log.demand_cuda()
        shown = self.shown or display_from(str(Path.cwd()), self.path)
        by_recipe = self.arguments.recipe is not None and not log.lenient
        self.report = log.report(shown, self._model_name, recipe=by_recipe)
        return self.report

    def _judged(self, log: Log) -> bool:
        """Run the stages; return whether the forward pass ran on CUDA."""
        try:
            self.arguments = _by_name(self.arguments, log)
            past = is_reference(self.path)
            opened = None if past else header.read_stage(self.open, self.arguments.state_dict_key, log)
            if self.arguments.loader is None:
                return self._strictly(opened, log)
            valueless = "a commit has no values" if opened is None else opened.contents.valueless
            if opened is not None and not valueless:
                return self._by_loader(opened, log)
            if self.arguments.model is None:
                text = f"{valueless}: there is nothing to load; with model= its keys are compared"
                log.stop(finding("loader-error", message=text), "there is nothing to load", "load")
            return self._strictly(opened, log)
        except Stopped:
            raise
        except (Exception, SystemExit) as error:
            log.stop(unforeseen(error), "it raised")

    def _strictly(self, opened: Opened | None, log: Log) -> bool:
        """Load with the model's own strict load, a commit if nothing was opened; return as `_judged` does."""
        arguments = self.arguments
        if opened is None:  # the commit's model runs on today's inputs
            blueprint, schema = header.build_stage(arguments, log)
            batch = Batch(inputs_of(arguments, blueprint, schema, log))
            ckpt = self._past(batch, log)
        else:
            ckpt, blueprint, schema = header.open_stage(opened, arguments, log)
            batch = Batch(inputs_of(arguments, blueprint, schema, log, ckpt.contents.header.behaviour))
            blueprint, schema, log.load_hook = with_hook(ckpt, blueprint, schema)
        self.ckpt, self._schema = ckpt, schema
        self._model_name = blueprint.name
        if self.drift:
            header.drift_stage(ckpt, schema, log)
        source = header.source_stage(arguments.source_model, ckpt, log)
        reason = values.unneeded(arguments, ckpt, wants_model=self.wants_model)
        subject = Subject(arguments, ckpt, blueprint, schema, source, batch, reason, log, place=self.place)
        return self._stages(subject)

    def _by_loader(self, opened: Opened, log: Log) -> bool:
        """Load with the repository's own function; return as `_judged` does."""
        tested = loader.prepared(self.arguments, self.path, opened.contents, log)
        subject, model, in_place = loader.load_stage(tested, opened, self.arguments, log)
        self.ckpt, self.model, self._model_name = subject.ckpt, model, subject.blueprint.name
        loader.trace_stage(tested, subject, model, in_place)
        inputs = inputs_of(self.arguments, subject.blueprint, subject.schema, log)
        on_cuda = values.forward_stage(replace(subject, batch=Batch(inputs)), model)
        log.stage("optimizer", "skipped", "none declared")
        return on_cuda

    def _past(self, batch: Batch, log: Log) -> Checkpoint:
        """Open a past commit as a checkpoint, with the outputs of its model if they are to be compared."""
        model, method, device = self.arguments.model, self.arguments.method, self.arguments.device
        asked = None if device in ("none", "rehearse") else batch.plain
        try:
            model_args = self.arguments.arguments_of_model(None)
            question = Question(model, model_args, method, batch=asked, most=_INTEGERS_OF_A_COMMIT)
            ckpt = open_past(self.path, question, self.place)
        except CheckpointError as error:
            log.stop(error, "the commit can't be asked", "open")
        header.note_opened(ckpt, "", log)
        return ckpt

    def _stages(self, subject: Subject) -> bool:
        """Run the stages after opening; return as `_judged` does."""
        arguments, ckpt, log = subject.arguments, subject.ckpt, subject.log
        files = ckpt.contents.files
        with log.reading("recipe", files):
            subject, applied = header.recipe_stage(subject)
        if arguments.direction != "backward":
            rollback_stage(subject)
        if arguments.direction == "forward":
            raise Stopped("direction=forward looks at the released model alone")
        with log.reading("compare", files):
            comparison = header.compare_stage(subject, applied)
        if log.failed:
            if comparison.fits:
                raise Stopped("an error was found before it")
            unfit = (
                "the recipe does not make it fit"
                if subject.recipe.operators
                else "the checkpoint does not fit"
            )
            raise Stopped(unfit)
        if isinstance(subject.schema, Sharded):
            self.model = sharded_stages(subject, applied)
            return False
        if subject.reason:
            log.stage("load", "skipped", subject.reason)
            runs = bool(ckpt.valueless) and arguments.device not in ("none", "rehearse")
            verify_unread(subject, applied, synthetic_values=runs and not comparison.mismatched)
        else:
            with log.reading("load", files):
                self.model, applied, old = values.load_stage(subject)
            with log.reading("verify", files), ckpt.progress():
                verify_stage(subject, old, applied, self.model)
            del applied, old  # frees the values that the proofs needed
        on_cuda = values.forward_stage(subject, self.model)
        with log.reading("optimizer", files), ckpt.progress():
            values.optimizer_stage(subject, self.model)
        return on_cuda

    @property
    def shown_model(self) -> nn.Module:
        """The model for ``ckpt_model``: the loaded one, or the one on meta if a lock has no values."""
        if self.model is not None:
            return as_it_was(self.model)
        assert self._schema is not None
        return as_it_was(self._schema).eval()


def _by_name(arguments: CheckArguments, log: Log) -> CheckArguments:
    """Read a recipe file and import an optimizer, once. The recipe stage reports an unreadable file."""
    if isinstance(arguments.recipe, str):
        with suppress(RecipeError):
            arguments = replace(arguments, recipe=Recipe.load(arguments.recipe))
    if isinstance(arguments.optimizer, str):
        try:
            arguments = replace(arguments, optimizer=imported(arguments.optimizer))
        except ModelError as error:
            log.stop(ModelError(f"optimizer: {error}"), "the optimizer can't be imported")
    return arguments


def _named(model: Any) -> str:
    if isinstance(model, str):
        shown = public(model)
        return shown if shown != model else model.replace(":", ".")
    return str(getattr(model, "__name__", type(model).__name__))
