"""The check: open, recipe, compare, load, verify, forward, optimizer; one method a stage."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint, open_checkpoint
from pytest_ckptcompat.core.errors import CheckpointError, ModelError, RecipeError, raised
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import Finding, Promise, Stage, Status, finding
from pytest_ckptcompat.core.memory import shown as size_shown
from pytest_ckptcompat.forward.inputs import Inputs
from pytest_ckptcompat.forward.real import forward
from pytest_ckptcompat.forward.rehearsal import rehearse
from pytest_ckptcompat.models.blueprint import Blueprint, blueprint
from pytest_ckptcompat.models.meta_copy import meta_copy
from pytest_ckptcompat.models.skeleton import skeleton
from pytest_ckptcompat.optimizer.stage import CLAIMS as OPTIMIZER_CLAIMS
from pytest_ckptcompat.optimizer.stage import check_optimizer
from pytest_ckptcompat.recipes.promises import NEEDED
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.report.report import Report
from pytest_ckptcompat.suggest.search import repair
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.tensors.footprint import weights
from pytest_ckptcompat.verification.comparison import Comparison, compare
from pytest_ckptcompat.verification.loaded import not_finite, tied_conflicts
from pytest_ckptcompat.verification.source_model import misfit
from pytest_ckptcompat.verification.unverified import unverified
from pytest_ckptcompat.verification.verify import verify

from . import protection
from .arguments import CheckArguments
from .rollback import rollback
from .waivers import settle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_ckptcompat.core.rules import Severity
    from pytest_ckptcompat.forward.outcome import Outcome
    from pytest_ckptcompat.recipes.applied import Applied

STAGES = ("open", "recipe", "compare", "load", "verify", "forward", "optimizer")

_SMALL = 4096
"""Elements of a tensor that a loader may look at: a version, a scale, a table."""

_LARGE = 64 << 20
"""Bytes of weights, above which it takes noticeable time to draw random ones first."""

_OF_VALUES = {"non-finite-value", "tied-conflict", "unloaded-parameter"}
_OF_STAGE = {"forward-": "forward", "recipe-": "verify", "optimizer-": "optimizer"}


def check(model: Any, ckpt: Any, **arguments: Any) -> Report:
    """Check that a checkpoint still serves a model: the arguments of ``@pytest.mark.ckpt_compat``.

    Args:
        model: a callable giving the model, ``"package.module:name"``, or an ``nn.Module``, left as it was.
        ckpt: a path, or what `open_checkpoint` gave.
        **arguments: ``recipe``, ``inputs``, ``source_model``, ``state_dict_key``, ``protect``, ``allow``,
            ``device``, ``optimizer``, as the marker takes them.

    Returns:
        The report. A checkpoint that can't be read or a recipe that does not apply is a finding in it.

    Raises:
        ValueError: an argument is unknown or of a wrong type.
    """
    case = CheckArguments.of(model=model, **arguments)
    if isinstance(ckpt, Checkpoint):
        return Check(case, ckpt.path, ckpt.at).run()
    path = os.fspath(ckpt)
    return Check(case, path, lambda key: open_checkpoint(path, key)).run()


class Stopped(Exception):  # noqa: N818  # it ends the pipeline, and is no error of its own
    """The stages that follow can't be run; `reason` is why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Check:
    """One run of the pipeline. `run` gives the report; `model` is then the loaded model, if it was loaded.

    Attributes:
        case: what is declared.
        path: of the checkpoint, as it was given.
        open: state dict key, or None -> the checkpoint; called once.
        severities: what ``ckpt_severity`` changes.
        require_cuda: fail unless the forward pass really ran on CUDA.
        wants_model: load the values even if no stage needs them (``ckpt_model``).
    """

    case: CheckArguments
    path: str
    open: Callable[[str | None], Checkpoint]
    severities: Mapping[str, Severity] = field(default_factory=dict)
    require_cuda: bool = False
    wants_model: bool = False
    model: nn.Module | None = field(default=None, init=False)
    report: Report | None = field(default=None, init=False)

    _ckpt: Checkpoint = field(init=False, repr=False)
    _recipe: Recipe = field(init=False, repr=False)
    _blueprint: Blueprint = field(init=False, repr=False)
    _schema: nn.Module = field(init=False, repr=False)
    _released: Blueprint | None = field(default=None, init=False, repr=False)
    _growth: Applied = field(init=False, repr=False)
    _comparison: Comparison = field(default_factory=Comparison, init=False, repr=False)
    _suggestion: Recipe | None = field(default=None, init=False, repr=False)
    _findings: list[Finding] = field(default_factory=list, init=False, repr=False)
    _promises: list[Promise] = field(default_factory=list, init=False, repr=False)
    _stages: list[Stage] = field(default_factory=list, init=False, repr=False)

    def run(self) -> Report:
        """Run every stage that can be run, and say of the others why they were not."""
        try:
            self._open()
            self._build()
            self._apply_recipe()
            self._compare()
            self._load()
            self._verify()
            self._forward()
            self._optimizer()
        except Stopped as stop:
            done = {stage.name for stage in self._stages}
            for name in STAGES:
                if name not in done:
                    undeclared = name == "optimizer" and self.case.optimizer is None
                    self._stage(name, "skipped", "none declared" if undeclared else stop.reason)
        self._demand_cuda()
        self.report = self._report()
        return self.report

    @property
    def shown_model(self) -> nn.Module:
        """What ``ckpt_model`` gives: the loaded model, or the one on meta where a lock has no values."""
        return self._schema.eval() if self.model is None else self.model

    # -- the stages ----------------------------------------------------------------------------------------

    def _open(self) -> None:
        try:
            self._ckpt = self.open(self.case.state_dict_key)
        except CheckpointError as error:
            self._fail("open", finding("no-checkpoint", message=str(error)))
            raise Stopped("the checkpoint can't be read") from None
        if self._ckpt.unsafe:
            self._findings.append(finding("unsafe-pickle", message=self._ckpt.unsafe))
        what = f"{self._ckpt.format}, {len(self._ckpt)} tensors, {size_shown(self._ckpt.nbytes)}"
        self._stage("open", "passed", what)

    def _build(self) -> None:
        """The model on the meta device; no stage of its own, since all that follow are about it."""
        try:
            self._blueprint = blueprint(self.case.model)
            self._schema = self._blueprint.schema()
        except ModelError as error:
            self._findings.append(finding("model-error", message=str(error)))
            raise Stopped("the model can't be built") from None

    def _apply_recipe(self) -> None:
        self._recipe = Recipe()
        self._growth = self._recipe.run(self._ckpt.meta(), self._schema.state_dict())
        keys = list(dict.fromkeys([*self._ckpt, *self._schema.state_dict()]))
        self._findings += protection.unknown(self.case.protect, keys)
        self._hold_source()
        if self.case.recipe is None:
            return self._stage("recipe", "skipped", "none declared")
        try:
            declared = _recipe(self.case.recipe)
        except RecipeError as error:
            self._fail("recipe", finding(error.rule, error.key, message=str(error)))
            raise Stopped("the recipe can't be read") from None
        try:
            self._growth = declared.run(self._ckpt.meta(), self._schema.state_dict())
        except RecipeError as error:
            self._fail("recipe", finding(error.rule, error.key, message=str(error)))
            self._suggestion, _ = self._suggested(declared)
            raise Stopped("the recipe does not apply") from None
        self._recipe = declared
        self._findings += protection.broken(self.case.protect, self._growth)
        return self._stage("recipe", "passed", self._growth.summary)

    def _hold_source(self) -> None:
        """A ``source_model`` that the checkpoint was not made for proves nothing; its header tells."""
        if self.case.source_model is None:
            return
        try:
            source = blueprint(self.case.source_model)
            wrong = misfit(source.schema(), self._ckpt.meta())
        except ModelError as error:
            wrong = f"source_model can't be built: {error}"
        if wrong:
            self._findings.append(finding("source-model-error", message=wrong))
        else:
            self._released = source

    def _compare(self) -> None:
        if self.case.direction != "backward":
            self._roll_back()
        if self.case.direction == "forward":
            raise Stopped("direction=forward looks at the released model alone")
        self._comparison = compare(self._schema, self._growth.state_dict)
        if self._comparison.needs_values:
            try:
                self._comparison = self._compared_by_values()
            except CheckpointError as error:
                self._fail("compare", finding("no-checkpoint", message=str(error)))
                raise Stopped("the values can't be read") from None
            except RecipeError as error:
                self._fail("compare", finding(error.rule, error.key, message=str(error)))
                raise Stopped("the recipe does not apply to the values") from None
        self._findings += self._comparison.findings
        count = f"{self._comparison.matched} of {self._comparison.total} keys match"
        if self._comparison.fits:
            return self._stage("compare", "passed", count)
        self._suggestion, trouble = self._suggested(self._recipe)
        return self._stage("compare", "failed", count + trouble)

    def _compared_by_values(self) -> Comparison:
        """Once more, with the values of what is small: version numbers, scales, and the like."""
        if self._ckpt.format == "lock":
            why = (
                "the model's own loader looks at values, and a lock has none: check against the checkpoint; "
            )
            found = [
                replace(each, message=why + each.message) if each.rule == "load-error" else each
                for each in self._comparison.findings
            ]
            return replace(self._comparison, findings=found)
        grown = self._recipe.run(self._ckpt.stored(), self._schema.state_dict()).state_dict
        for key, value in self._growth.state_dict.items():
            if isinstance(value, torch.Tensor) and value.numel() > _SMALL:
                grown[key] = value
            else:
                grown[key] = materialise(grown[key])
        return compare(self._schema, grown)

    def _roll_back(self) -> None:
        source = self._source()
        released = None if source is None else meta_copy(source())
        found = rollback(self._ckpt.meta(), self._schema.state_dict(), released)
        if self._recipe.operators:
            found = [replace(each, message="the checkpoint as it is, without the recipe") for each in found]
        self._findings += found
        judge = "judged by keys and shapes" if released is None else "judged by source_model's own loader"
        told = f"the released model on today's keys: {len(found)} differ, {judge}"
        self._stage("compare-forward", "failed" if _errors(found) else "passed", told)

    def _suggested(self, declared: Recipe) -> tuple[Recipe | None, str]:
        """A recipe that would load; or none, and why not if that is no lack of ideas: the verdict stands."""
        target, raw = self._schema.state_dict(), self._ckpt.meta()

        def loads(recipe: Recipe) -> bool:
            return compare(self._schema, recipe.apply(raw, target)).fits

        try:
            modules = dict(self._schema.named_modules(remove_duplicate=False))
            return repair(declared, raw, target, loads, modules), ""
        except Exception as error:
            return None, f"; no suggestion, an error of pytest-ckptcompat itself: {raised(error)}"

    def _load(self) -> None:
        if _errors(self._settled()):
            if self._comparison.fits:
                raise Stopped("an error was found before it")
            how = "after the recipe" if self._recipe.operators else "as it is"
            raise Stopped(f"the checkpoint does not fit {how}")
        reason = self._unneeded()
        if reason:
            self._stage("load", "skipped", reason)
            self._list_promises(reason)
            return
        if self._comparison.mismatched:
            raise Stopped("shapes differ (waived): nothing can be loaded")
        try:
            self._growth = self._recipe.run(self._ckpt.stored(), self._schema.state_dict())
            self.model = self._loaded()
        except ModelError as error:
            self._fail("load", finding("model-error", message=str(error)))
            raise Stopped("the model can't be built") from None
        except CheckpointError as error:
            self._fail("load", finding("no-checkpoint", message=str(error)))
            raise Stopped("the values can't be read") from None
        except (Exception, SystemExit) as error:
            self._fail("load", finding("load-error", message=escape(raised(error), limit=500)))
            raise Stopped("the checkpoint does not load") from None
        self.model.eval()
        found = [*not_finite(self.model), *tied_conflicts(self.model, self._growth.state_dict)]
        self._findings += found
        strictly = "strictly" if self._comparison.fits else "without the waived keys"
        self._stage("load", "failed" if _errors(found) else "passed", f"{strictly}, on the CPU")

    def _loaded(self) -> nn.Module:
        """The model with the checkpoint's values; in a large one, no random values are drawn first."""

        def load(model: nn.Module) -> None:
            with self._ckpt.progress(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.load_state_dict(self._growth.state_dict, strict=self._comparison.fits)

        model = None
        if self._comparison.fits and weights(self._schema) > _LARGE:
            model = skeleton(self._blueprint.build, load)
        if model is None:
            model = self._blueprint.build()
            load(model)
        return model

    def _list_promises(self, reason: str) -> None:
        """What a recipe promises and an optimizer is to do, where nothing of it can be checked."""
        optimized = self.case.optimizer is not None
        if self._recipe.operators or optimized:
            self._promises += unverified(
                self._recipe,
                self._growth,
                old=self._ckpt.meta(),
                target=self._schema.state_dict(),
                source_model=self.case.source_model is not None,
                inputs=self.case.inputs is not None,
            )
        if optimized:
            self._promises += [Promise(name, "unchecked", NEEDED) for name in OPTIMIZER_CLAIMS]
        count = len(self._promises)
        self._stage("verify", "skipped", f"{reason}: {count} promises not checked" if count else reason)

    def _unneeded(self) -> str:
        """Why no value has to be read, or ``""``."""
        case = self.case
        if self._ckpt.format == "lock":
            return "a lock file has no values"
        if self.wants_model:
            return ""
        if case.device in ("none", "rehearse"):
            return f"device={case.device} reads headers only"
        if case.inputs is None and case.recipe is None and case.optimizer is None:
            return "no stage needs values: no inputs, no recipe"
        return ""

    def _verify(self) -> None:
        if self.model is None:
            return None
        source = self._source()
        inputs = self._inputs()
        promises, found = verify(
            self._recipe,
            self._growth,
            old=self._ckpt.stored(),
            model=self.model,
            build=self._blueprint.build,
            source=source,
            batches=None if inputs is None else inputs.batch,
            protect=self.case.protect,
            waived=[*self._comparison.missing, *self._comparison.unexpected],
        )
        self._promises += promises
        self._findings += found
        return self._stage("verify", "failed" if _errors(found) else "passed", _kept(promises))

    def _source(self) -> Callable[[], nn.Module] | None:
        return None if self._released is None else self._released.build

    def _forward(self) -> None:
        device = self.case.device or "auto"
        if device == "none":
            return self._stage("forward", "skipped", "device=none reads headers only")
        inputs = self._inputs()
        if inputs is None:
            return self._stage("forward", "skipped", "no inputs declared")
        if device == "rehearse":
            return self._ran("forward", rehearse(self._schema, inputs))
        if self.model is None:
            self._stage("forward", "skipped", self._unneeded())
        elif device != "auto":
            return self._ran("forward", forward(self.model, inputs, device))
        elif torch.cuda.is_available():
            return self._ran("forward", forward(self.model, inputs, "cuda"))
        else:
            self._ran("forward", forward(self.model, inputs, "cpu", or_skip=True))
        ran = self._stages[-1].status == "passed"
        return self._ran("forward-cuda", rehearse(self.model or self._schema, inputs, ran_on_cpu=ran))

    def _inputs(self) -> Inputs | None:
        if self.case.inputs is None:
            return None
        return Inputs.parse(self.case.inputs)

    def _optimizer(self) -> None:
        if self.case.optimizer is None:
            return self._stage("optimizer", "skipped", "none declared")
        if self.model is None:
            return self._stage("optimizer", "skipped", self._unneeded())
        source = self._source()
        promises, found = check_optimizer(
            self.case.optimizer,
            checkpoint=self._ckpt,
            recipe=self._recipe,
            model=self.model,
            source=None if source is None else source(),
        )
        self._promises += promises
        self._findings += found
        if not _errors(found) and not any(promise.status == "kept" for promise in promises):
            return self._stage("optimizer", "skipped", "; ".join(promise.detail for promise in promises))
        return self._stage("optimizer", "failed" if _errors(found) else "passed", _kept(promises))

    def _demand_cuda(self) -> None:
        if not self.require_cuda or any(f.rule == "forward-no-cuda" for f in self._findings):
            return
        ran = next((stage for stage in self._stages if stage.name == "forward"), None)
        if ran is None or ran.status != "passed" or not ran.detail.startswith("on cuda"):
            how = "was not reached" if ran is None else f"was {ran.status}: {ran.detail}"
            if ran is not None and ran.status == "passed":
                how = f"ran {ran.detail}"
            message = f"CUDA is required, but the forward pass {how}"
            self._findings.append(finding("forward-no-cuda", message=message))

    # -- bookkeeping ---------------------------------------------------------------------------------------

    def _stage(self, name: str, status: Status, detail: str) -> None:
        self._stages.append(Stage(name, status, detail))

    def _fail(self, name: str, found: Finding) -> None:
        self._findings.append(found)
        self._stage(name, "failed", found.rule)

    def _ran(self, name: str, outcome: Outcome) -> None:
        # What fails on the CPU fails in the rehearsal with the same words: once is enough.
        self._findings += [found for found in outcome.findings if found not in self._findings]
        self._stage(name, outcome.status, outcome.detail)

    def _settled(self) -> list[Finding]:
        return settle(self._findings, self.case.allow, self.severities, judged=self._judged)

    def _judged(self, rule: str) -> bool:
        """Whether the stage that gives findings of this rule was run: only then is a waiver of it unused."""
        wanted = next((stage for prefix, stage in _OF_STAGE.items() if rule.startswith(prefix)), "compare")
        if rule in _OF_VALUES:
            wanted = "load"
        return any(s.name.startswith(wanted) and s.status != "skipped" for s in self._stages)

    def _report(self) -> Report:
        opened = hasattr(self, "_ckpt")
        path = self.path
        comparison = self._comparison
        return Report(
            checkpoint=self._ckpt.name if opened else escape(path.rstrip("/").rpartition("/")[2] or path),
            model=self._blueprint.name if hasattr(self, "_blueprint") else _named(self.case.model),
            missing=comparison.missing,
            unexpected=comparison.unexpected,
            mismatched=comparison.mismatched,
            matched=comparison.matched,
            total=comparison.total,
            findings=self._settled(),
            promises=self._promises,
            stages=self._stages,
            suggestion=self._suggestion,
            recipe=self.case.recipe is not None,
            fitting=comparison.fitting,
        )


def _recipe(declared: Recipe | str) -> Recipe:
    return Recipe.load(declared) if isinstance(declared, str) else declared


def _named(model: Any) -> str:
    return (
        model.replace(":", ".")
        if isinstance(model, str)
        else getattr(model, "__name__", type(model).__name__)
    )


def _kept(promises: list[Promise]) -> str:
    kept = sum(promise.status == "kept" for promise in promises)
    return f"{kept} of {len(promises)} promises kept"


def _errors(findings: list[Finding]) -> bool:
    return any(found.severity == "error" for found in findings)
