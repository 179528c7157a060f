"""The log of a check, from which the report is made."""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError, RecipeError, raised
from pytest_ckptcompat.core.findings import Finding, Promise, Stage, Status, finding
from pytest_ckptcompat.core.rules import RULES, Kind, Severity
from pytest_ckptcompat.report.report import Report
from pytest_ckptcompat.verification.comparison import Comparison

from .waivers import settle

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import NoReturn

    from pytest_ckptcompat.files.files import Files
    from pytest_ckptcompat.recipes.recipe import Recipe
    from pytest_ckptcompat.report.advice import Remedy

    from .waivers import Waiver


class Stopped(Exception):  # noqa: N818  # ends the check and is not an error in itself
    """Raised by any stage after which no other can be run, with its finding in the log; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Log:
    """Findings, promises and stages of one check, in order.

    Attributes:
        waivers: which findings are accepted.
        severities: rule -> severity, as ``ckpt_severity`` sets them.
        comparison: the model's verdict on the keys; empty before the compare stage.
        loader: the name of the loading function; ``""`` for a strict load.
        suggestion: a recipe with which the checkpoint would load.
        load_hook: what happened to the model's `on_load_checkpoint`, if it has one.
        remedy: what else the search for a recipe found.
        lenient: whether waivers may be unused, since they may be for other checkpoints.
    """

    waivers: Sequence[Waiver] = ()
    severities: Mapping[str, Severity] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    comparison: Comparison = field(default_factory=Comparison)
    loader: str = ""
    suggestion: Recipe | None = None
    remedy: Remedy | None = None
    lenient: bool = False
    load_hook: str = ""
    _run: set[Kind] = field(default_factory=set)
    _causes: dict[str, Sequence[Finding]] = field(default_factory=dict)

    def add(self, *findings: Finding) -> None:
        """Add findings."""
        self.findings += findings

    def stage(
        self, kind: Kind, status: Status, detail: str, name: str = "", causes: Sequence[Finding] = ()
    ) -> None:
        """Add a stage, and the findings that made it fail, if any. Its name defaults to its kind."""
        self.stages.append(Stage(name or kind, status, detail))
        self._causes[name or kind] = causes
        if status != "skipped":
            self._run.add(kind)

    def done(self, kind: Kind) -> None:
        """Note that a stage without its own line was run."""
        self._run.add(kind)

    def judged(self, kind: Kind, found: Iterable[Finding], detail: str, name: str = "") -> None:
        """Add a stage with its findings. It failed if one of them is an error."""
        found = list(found)
        self.add(*found)
        self.stage(kind, "failed" if errors(found) else "passed", detail, name, found)

    def stop(self, cause: Finding | Exception, reason: str, stage: Kind | None = None) -> NoReturn:
        """Add the finding that ends the check, or that of an error, and the stage that it made fail."""
        found = _finding_of(cause) if isinstance(cause, Exception) else cause
        self.add(found)
        if stage is None:
            raise Stopped(f"{reason} ({found.rule})") from None
        self.stage(stage, "failed", found.rule, causes=[found])
        raise Stopped(reason) from None

    def demand_cuda(self) -> None:
        """Add a finding on why the forward pass did not run on CUDA, unless there is one."""
        if any(found.rule == "forward-no-cuda" for found in self.findings):
            return
        ran = next((stage for stage in self.stages if stage.name == "forward"), None)
        if ran is None:
            how = "was not reached"
        else:
            how = f"ran {ran.detail}" if ran.status == "passed" else f"was {ran.status}: {ran.detail}"
        self.add(finding("forward-no-cuda", message=f"CUDA is required, but the forward pass {how}"))

    @contextmanager
    def reading(self, stage: Kind, files: Files) -> Iterator[None]:
        """Run a stage that reads values. If a read fails, drop the stage's other findings.

        Code in torch or in the model may catch the error of a read and go on, or raise its own error. The
        stage's findings then say nothing about the model.
        """
        files.failure = None
        before, read = (len(self.findings), len(self.promises), len(self.stages)), files.bytes_read
        failure: CheckpointError | None = None
        try:
            yield
            if files.bytes_read != read:
                files.check_unchanged()
        except Exception as error:
            failure = error if isinstance(error, CheckpointError) else files.failure
            if failure is None:
                raise
        if failure := failure or files.failure:
            findings, promises, stages = before
            del self.findings[findings:], self.promises[promises:], self.stages[stages:]
            self.stop(failure, "the values can't be read", stage)

    def settled(self) -> list[Finding]:
        """Return the findings with the user's severities and waivers applied."""
        return settle(self.findings, self.waivers, self.severities, judged=self._is_judged)

    @property
    def failed(self) -> bool:
        """Whether there is an error that is not waived."""
        return errors(self.settled())

    def _is_judged(self, rule: str) -> bool:
        """Return whether the rule's stage was run. Only then can a waiver of the rule be unused."""
        if self.lenient:
            return False
        stage = RULES[rule].stage
        return stage in self._run or (stage in _DIRECTIONS and not self._run.isdisjoint(_DIRECTIONS))

    def report(self, checkpoint: str, model: str, *, recipe: bool) -> Report:
        """Make the report. `checkpoint` is safe to print; `recipe` tells whether one was declared."""
        comparison, findings = self.comparison, self.settled()
        return Report(
            checkpoint=checkpoint,
            model=model,
            missing=comparison.missing,
            unexpected=comparison.unexpected,
            mismatched=comparison.mismatched,
            matched=comparison.matched,
            total=comparison.total,
            findings=findings,
            promises=self.promises,
            stages=[self._as_settled(stage, findings) for stage in self.stages],
            suggestion=self.suggestion,
            remedy=self.remedy,
            recipe=recipe,
            loader=self.loader,
            fitting=comparison.fitting,
        )

    def _as_settled(self, stage: Stage, findings: Sequence[Finding]) -> Stage:
        """Return the stage as not failed if all its errors are waived or configured away."""
        causes = {(found.rule, found.key) for found in self._causes[stage.name]}
        standing = {each.severity for each in findings if (each.rule, each.key) in causes}
        if stage.status != "failed" or not causes or "error" in standing:
            return stage
        ended = stage.detail in RULES  # the stage ended with this finding
        why = "waived" if "off" in standing else "not an error by ckpt_severity"
        return replace(stage, status="skipped" if ended else "passed", detail=f"{stage.detail}; {why}")


_DIRECTIONS: frozenset[Kind] = frozenset({"compare", "rollback"})
"""The direction of a check chooses between these. A waiver for the other one is reported as unused."""


def _finding_of(error: Exception) -> Finding:
    if isinstance(error, RecipeError):
        return finding(error.rule, error.key, message=str(error))
    rule = "no-checkpoint" if isinstance(error, CheckpointError) else "model-error"
    return finding(rule, message=str(error))


def errors(findings: Iterable[Finding]) -> bool:
    """Return whether one of the findings is an error."""
    return any(found.severity == "error" for found in findings)


def unforeseen(error: BaseException) -> Finding:
    """Return a finding for an unexpected error, usually from the model's own code."""
    text = f"code of the model, or of the check, raised {raised(error)}"
    if not text.endswith(")"):  # the text names no line, as only torch and the check ran
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text += f" ({Path(frame.filename).name}:{frame.lineno})"
    return finding("model-error", message=text)
