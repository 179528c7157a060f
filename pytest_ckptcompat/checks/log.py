"""What a check has found so far, and the report that becomes of it."""

from __future__ import annotations

import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import CheckpointError, raised
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


class Stopped(Exception):  # noqa: N818  # it ends the check, and is not an error of its own
    """The stages that follow can't be run; `reason` is why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Log:
    """Findings, promises and stages of one check, in the order in which they come.

    Attributes:
        waivers: findings that are accepted.
        severities: what ``ckpt_severity`` changes.
        comparison: the model's verdict on the keys; empty until they were compared.
        loader: the function that loaded the model; ``""`` where it was loaded strictly.
        suggestion: a recipe with which the checkpoint would load.
        load_hook: what became of the model's own hook on the whole checkpoint, if it has one.
        remedy: what the search for one found besides.
        lenient: whether waivers may be unused, because they are for other checkpoints.
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
        """Note what was found."""
        self.findings += findings

    def stage(
        self, kind: Kind, status: Status, detail: str, name: str = "", causes: Sequence[Finding] = ()
    ) -> None:
        """Note how a stage went, and the findings by which it failed, if it did.

        Its name is its kind unless one of that kind is there already.
        """
        self.stages.append(Stage(name or kind, status, detail))
        self._causes[name or kind] = causes
        if status != "skipped":
            self._run.add(kind)

    def done(self, kind: Kind) -> None:
        """Note that what has no line of its own was done."""
        self._run.add(kind)

    def judged(self, kind: Kind, found: Iterable[Finding], detail: str, name: str = "") -> None:
        """Note a stage with its findings: it failed if one of them is an error."""
        found = list(found)
        self.add(*found)
        self.stage(kind, "failed" if errors(found) else "passed", detail, name, found)

    def stop(self, found: Finding, reason: str, stage: Kind | None = None) -> NoReturn:
        """Note the finding that ends the check, and the stage that failed by it.

        Raises:
            Stopped: always.
        """
        self.add(found)
        if stage is None:
            raise Stopped(f"{reason} ({found.rule})") from None
        self.stage(stage, "failed", found.rule, causes=[found])
        raise Stopped(reason) from None

    def demand_cuda(self) -> None:
        """Note why the forward pass did not run on a card, unless that was said."""
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
        """Run a stage that reads values; where they can't be read, that alone is what it found.

        Code of torch and of models may catch the error of a read and go on, or raise its own: nothing that
        the stage says then is about the model.

        Raises:
            Stopped: values can't be read, or the stage says so.
        """
        files.failure = None
        before, read = (len(self.findings), len(self.promises), len(self.stages)), files.bytes_read
        stopped: Exception | None = None
        failure: CheckpointError | None = None
        try:
            yield
            if files.bytes_read != read:
                files.check_unchanged()
        except CheckpointError as error:
            failure = error
        except Exception as error:
            stopped = error
        failure = failure or files.failure
        if failure is None and stopped is not None:
            raise stopped
        if failure is not None:
            findings, promises, stages = before
            del self.findings[findings:], self.promises[promises:], self.stages[stages:]
            self.stop(finding("no-checkpoint", message=str(failure)), "the values can't be read", stage)

    def settled(self) -> list[Finding]:
        """The findings as the user wants them: severities configured, waivers applied."""
        return settle(self.findings, self.waivers, self.severities, judged=self._is_judged)

    @property
    def failed(self) -> bool:
        """Whether an error stands."""
        return errors(self.settled())

    def _is_judged(self, rule: str) -> bool:
        """Whether the stage that finds this was run: only then is a waiver of it unused."""
        if self.lenient:
            return False
        stage = RULES[rule].stage
        return stage in self._run or (stage in _DIRECTIONS and not self._run.isdisjoint(_DIRECTIONS))

    def report(self, checkpoint: str, model: str, *, recipe: bool) -> Report:
        """The report.

        Args:
            checkpoint: name of the checkpoint, safe to print.
            model: name of the model.
            recipe: whether one is declared.
        """
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
        """The stage: one whose errors are all waived, or configured away, has not failed."""
        causes = {(found.rule, found.key) for found in self._causes[stage.name]}
        standing = {each.severity for each in findings if (each.rule, each.key) in causes}
        if stage.status != "failed" or not causes or "error" in standing:
            return stage
        ended = stage.detail in RULES  # nothing was done but to find this
        why = "waived" if "off" in standing else "not an error by ckpt_severity"
        return replace(stage, status="skipped" if ended else "passed", detail=f"{stage.detail}; {why}")


_DIRECTIONS: frozenset[Kind] = frozenset({"compare", "rollback"})
"""The direction of a check chooses between them: a waiver for the other one is of no use."""


def errors(findings: Iterable[Finding]) -> bool:
    """Whether one of the findings is an error."""
    return any(found.severity == "error" for found in findings)


def unforeseen(error: BaseException) -> Finding:
    """What was raised where no stage expects it, by the model's own code as a rule, in one line."""
    text = f"code of the model, or of the check, raised {raised(error)}"
    if not text.endswith(")"):  # only code of torch and of the check was running
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text += f" ({Path(frame.filename).name}:{frame.lineno})"
    return finding("model-error", message=text)
