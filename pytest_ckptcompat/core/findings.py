"""What a check finds: findings, promises, stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pytest_ckptcompat.core.rules import RULES, Severity

Status = Literal["passed", "failed", "rehearsed", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong or risky that a check found.

    Attributes:
        rule: the id of the rule, a key of `RULES`.
        severity: only ``error`` makes a report fail; ``off`` is a waived finding.
        key: the state dict key concerned, as the file or model spells it, or ``""``.
        checkpoint: what the checkpoint has under this key, as displayed: ``"(4, 256) f32"``, or ``""``.
        model: what the model has under this key, in the same form.
        message: one sentence, if `checkpoint` and `model` don't say everything; safe to print.
    """

    rule: str
    severity: Severity
    key: str = ""
    checkpoint: str = ""
    model: str = ""
    message: str = ""


def finding(rule: str, key: str = "", checkpoint: str = "", model: str = "", message: str = "") -> Finding:
    """Return a finding with the default severity of its rule."""
    return Finding(rule, RULES[rule].severity, key, checkpoint, model, message)


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise of a recipe and its outcome.

    Attributes:
        name: what is promised.
        status: ``changed`` if an operator declares that it does not keep the promise.
        detail: why the promise is broken or unchecked, or by how much the values changed.
    """

    name: str
    status: Literal["kept", "broken", "unchecked", "changed"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the check and its outcome. If it was skipped, `detail` says why."""

    name: str
    status: Status
    detail: str = ""
