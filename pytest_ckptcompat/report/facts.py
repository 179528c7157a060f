"""The outcome of a check: the verdict, the findings behind it, and every stage, run or not."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import Finding, Promise, Stage
from pytest_ckptcompat.core.rules import RULES

from .advice import Advice, RecipeText, Remedy, advice

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_ckptcompat.core.rules import Kind
    from pytest_ckptcompat.recipes.recipe import Recipe

Shape = tuple[int, ...]
SCHEMA_VERSION = 1


@dataclass(frozen=True, repr=False)
class Facts:
    """The outcome of one check.

    Attributes:
        checkpoint: the checkpoint's path, in pytest relative to the rootdir; safe to print.
        model: the model's name.
        missing: keys that only the model has, according to torch, waived or not.
        unexpected: keys that only the checkpoint has.
        mismatched: (key, checkpoint's shape, model's shape).
        matched: how many keys fit, of the `total` keys in the model or in the checkpoint; both are 0 if
            nothing was compared.
        findings: all findings, including waived ones (severity ``off``).
        promises: the promises of the recipe, and whether they were kept.
        stages: open, recipe, compare, load, verify, forward, optimizer, as far as reached.
        suggestion: a recipe with which the checkpoint would load, already tried.
        remedy: what else the search for a recipe found; None if there was no search.
        recipe: whether the checkpoint went through a recipe.
        loader: the name of the loading function; ``""`` for a strict load. With a loader, `matched` counts
            the keys that hold the checkpoint's values.
        fitting: key -> shape and dtype as text, for the keys that match; not part of the JSON.
    """

    checkpoint: str
    model: str
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    matched: int = 0
    total: int = 0
    findings: list[Finding] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    suggestion: Recipe | RecipeText | None = None
    remedy: Remedy | None = None
    recipe: bool = False
    loader: str = ""
    fitting: Mapping[str, str] = field(default_factory=dict)

    @property
    def errors(self) -> list[Finding]:
        """The findings that make the report fail."""
        return [found for found in self.findings if found.severity == "error"]

    @property
    def ok(self) -> bool:
        """Whether nothing of severity ``error`` was found."""
        return not self.errors

    @property
    def verdict(self) -> str:
        """The one-line summary: what was found first, and how much."""
        if self.ok:
            if not self.total and self._rolls_back:
                return f"{self.checkpoint}: the released model can load checkpoints of today's {self.model}"
            rollback = ", and the released model can load today's checkpoints" if self._rolls_back else ""
            return f"{self.checkpoint} fits {self.model}{self._how()}{self._waived}: {self._kept()}{rollback}"
        first = self.errors[0]
        if not self.checkpoint:
            return f"{self.model}: {_one_line(first)}"
        if first.rule == "release-drift":
            count = sum(each.rule == first.rule for each in self.errors)
            keys = f"{count} key{'' if count == 1 else 's'}"
            return f"{self.model} does not save what {self.checkpoint} has: {keys} differ; {first.message}"
        if first.rule.startswith("loader-"):
            return self._misloaded(first)
        if any(map(_refuses, self.errors)):
            counts = _counted(len(self.mismatched), len(self.missing), len(self.unexpected))
            why = next((f"{f.rule}: {_one_line(f)}; " for f in self.errors if _stage(f) in _RECIPE), "")
            if not (self.mismatched or self.missing or self.unexpected):
                error = next(filter(_refuses, self.errors))
                return f"{self.checkpoint} does not load into {self.model}: {why}{_one_line(error)}"
            return f"{self.checkpoint} does not fit {self.model}: {why}{counts} ({self._kept()})"
        if _stage(first) in ("open", "build") or (_stage(first) in _RECIPE and not self.total):
            path, _, reason = _one_line(first).partition(": ")
            why = reason if path.endswith(self.checkpoint) and reason else _one_line(first)
            if why.startswith(f"{self.checkpoint} "):
                why = f"it {why.removeprefix(self.checkpoint).lstrip()}"
            return f"{self.checkpoint} was not checked: {why}"
        if _stage(first) == "rollback":
            found = Counter(each.rule.removeprefix("rollback-") for each in self.errors)
            counts = _counted(found["mismatch"], found["missing"], found["unexpected"])
            fits = f" fits {self.model}, but" if self.total else ":"
            cant = f"the released model can't load checkpoints of today's {self.model}"
            return f"{self.checkpoint}{fits} {cant}: {counts}"
        more = len(self.errors) - 1
        others = f" (and {more} more)" if more else ""
        fits = f"fits {self.model}, but" if self.total else "fails:"
        return f"{self.checkpoint} {fits} {first.rule}: {_one_line(first)}{others}"

    @property
    def untold(self) -> list[Finding]:
        """The findings that the verdict does not fully state."""
        verdict = self.verdict
        first = next((found for found in self.errors if not (found.checkpoint or found.model)), None)
        told = (
            first is not None and first.message and _one_line(first).removeprefix(self.checkpoint) in verdict
        )
        return [found for found in self.findings if not (told and found is first)]

    @property
    def side(self) -> str:
        """The side that is compared with the model: ``checkpoint`` or ``after recipe``."""
        applied = any(stage.name == "recipe" and stage.status == "passed" for stage in self.stages)
        return "after recipe" if applied else "checkpoint"

    @property
    def advice(self) -> list[Advice]:
        """What the user can do."""
        return list(advice(self.suggestion, self.remedy, declared=self.recipe))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the report, described by ``report.schema.json``, as plain values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "ok": self.ok,
            "verdict": self.verdict,
            "checkpoint": self.checkpoint,
            "model": self.model,
            "missing": self.missing,
            "unexpected": self.unexpected,
            "mismatched": [
                {"key": key, "checkpoint": list(old), "model": list(new)} for key, old, new in self.mismatched
            ],
            "recipe": self.recipe,
            **({"loader": self.loader} if self.loader else {}),
            "keys": {"matched": self.matched, "total": self.total},
            "findings": [asdict(found) for found in self.findings],
            "promises": [asdict(promise) for promise in self.promises],
            "stages": [asdict(stage) for stage in self.stages],
            "suggestion": None if self.suggestion is None else asdict(RecipeText.of(self.suggestion)),
            "remedy": None if self.remedy is None else self.remedy.to_dict(),
        }

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Restore a report from the result of `to_dict`, to which `fitting` may have been added."""
        suggestion = content["suggestion"]
        return cls(
            checkpoint=content["checkpoint"],
            model=content["model"],
            missing=content["missing"],
            unexpected=content["unexpected"],
            mismatched=[
                (each["key"], tuple(each["checkpoint"]), tuple(each["model"]))
                for each in content["mismatched"]
            ],
            matched=content["keys"]["matched"],
            total=content["keys"]["total"],
            findings=[Finding(**each) for each in content["findings"]],
            promises=[Promise(**each) for each in content["promises"]],
            stages=[Stage(**each) for each in content["stages"]],
            suggestion=None if suggestion is None else RecipeText(**suggestion),
            remedy=None if content.get("remedy") is None else Remedy.of(content["remedy"]),
            recipe=content["recipe"],
            loader=content.get("loader", ""),
            fitting=content.get("fitting", {}),
        )

    @property
    def _rolls_back(self) -> bool:
        return any(stage.name == "compare-forward" and stage.status == "passed" for stage in self.stages)

    @property
    def _waived(self) -> str:
        waived = sum(found.severity == "off" for found in self.findings)
        return f" ({waived:,} finding{'' if waived == 1 else 's'} waived)" if waived else ""

    def _misloaded(self, first: Finding) -> str:
        """Return the verdict on a loader that did not load correctly."""
        if first.rule == "loader-error":
            return f"{self.checkpoint} was not loaded: {_one_line(first)}"
        if not self.matched:
            return (
                f"{self.loader} loads nothing of {self.checkpoint}: "
                f"none of the {self.total} keys of {self.model} holds its values"
            )
        found = Counter(each.rule for each in self.errors)
        counts = f"{found['loader-missed']} missed, {found['loader-other']} with other values"
        what = f"{self.loader} does not load all of {self.checkpoint} into {self.model}"
        return f"{what}: {counts} ({self._kept()})"

    def _how(self) -> str:
        means = [self.loader, "the recipe" if self.recipe else ""]
        told = " and ".join(filter(None, means))
        return f" with {told}" if told else ""

    def _kept(self) -> str:
        what = "hold the checkpoint's values" if self.loader else "match"
        return f"{self.matched} of {self.total} keys {what}"


_RECIPE = ("recipe", "verify")


def _stage(found: Finding) -> Kind:
    return RULES[found.rule].stage


def _counted(mismatched: int, missing: int, unexpected: int) -> str:
    return f"{mismatched} mismatched, {missing} missing, {unexpected} unexpected"


def _refuses(found: Finding) -> bool:
    """Return whether the model's strict load refuses this; it accepts a lossy cast."""
    return _stage(found) == "compare" and found.rule != "dtype-mismatch"


def _one_line(found: Finding) -> str:
    text = " ".join(found.message.split())
    key = escape(found.key, limit=120)
    if not key or key in text:
        return text or found.rule
    return f"{key}: {text}" if text else key
