"""What a check finds: findings, promises, stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pytest_ckptcompat.core.rules import RULES, Severity

Status = Literal["passed", "failed", "rehearsed", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or that people regret.

    Attributes:
        rule: its id, a key of `RULES`.
        severity: only ``error`` makes a report fail; ``off`` is a waived finding.
        key: the state dict key concerned, as the file or model spells it, or ``""``.
        checkpoint: what the checkpoint has there, as it is shown: ``"(4, 256) f32"``, or ``""``.
        model: what the model has there, likewise.
        message: one sentence, for rules whose two sides do not say it all; safe to print.
    """

    rule: str
    severity: Severity
    key: str = ""
    checkpoint: str = ""
    model: str = ""
    message: str = ""


def finding(rule: str, key: str = "", checkpoint: str = "", model: str = "", message: str = "") -> Finding:
    """A finding with its rule's own severity."""
    return Finding(rule, RULES[rule].severity, key, checkpoint, model, message)


@dataclass(frozen=True, slots=True)
class Promise:
    """One thing a recipe promises, and what was found.

    ``kept``, ``broken`` or ``unchecked`` (and why); ``changed``, by how much, where a step says that it does
    not keep it.
    """

    name: str
    status: Literal["kept", "broken", "unchecked", "changed"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the check and how it went; a stage that was not run says why in `detail`."""

    name: str
    status: Status
    detail: str = ""
