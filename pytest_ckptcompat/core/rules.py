"""The rules: id, stage, severity, meaning."""

from __future__ import annotations

import difflib
from typing import Literal, NamedTuple

Severity = Literal["error", "warn", "off"]


Kind = Literal[
    "open",
    "build",
    "source",
    "recipe",
    "compare",
    "rollback",
    "load",
    "verify",
    "forward",
    "optimizer",
    "waivers",
]
"""The kinds of stages, in order. Some have no line of their own in a report, some have two."""


class Rule(NamedTuple):
    """A rule.

    Attributes:
        id: its name in reports, waivers and settings.
        stage: the stage that applies it. A waiver counts as unused only if this stage was run.
        severity: the default, which ``ckpt_severity`` can change.
        meaning: what it finds, in one sentence.
    """

    id: str
    stage: Kind
    severity: Severity
    meaning: str


def unknown(rule: object) -> str:
    """Return the message for an unknown rule, with the rule that may have been meant."""
    near = difflib.get_close_matches(str(rule), RULES, 1)
    hint = f"did you mean {near[0]!r}?" if near else "'ckptcompat rules' lists them"
    return f"no rule {rule!r}: {hint}"


RULES: dict[str, Rule] = {
    rule.id: rule
    for rule in (
        Rule("missing-key", "compare", "error", "the model needs a key that the checkpoint does not have"),
        Rule("unexpected-key", "compare", "error", "the checkpoint has a key that the model does not know"),
        Rule("shape-mismatch", "compare", "error", "a key has different shapes in checkpoint and model"),
        Rule(
            "rollback-missing",
            "rollback",
            "error",
            "the released model needs a key that today's model does not have",
        ),
        Rule(
            "rollback-unexpected",
            "rollback",
            "error",
            "today's model has a key that the released model does not know",
        ),
        Rule(
            "rollback-mismatch",
            "rollback",
            "error",
            "a key has other shapes in the released and in today's model",
        ),
        Rule("load-error", "compare", "error", "the model's own load_state_dict refused the checkpoint"),
        Rule("model-error", "build", "error", "the model could not be built"),
        Rule(
            "dtype-mismatch",
            "compare",
            "warn",
            "loading converts values to another dtype and loses some of them",
        ),
        Rule("non-finite-value", "load", "warn", "values that were loaded are NaN or infinite"),
        Rule(
            "tied-conflict",
            "load",
            "error",
            "names that the model ties have different values in the checkpoint",
        ),
        Rule(
            "unloaded-parameter",
            "load",
            "error",
            "after loading, a parameter is on meta or still as constructed",
        ),
        Rule(
            "extra-state-unread",
            "compare",
            "warn",
            "extra state can't be read without running what the file names; the tensors alone were judged",
        ),
        Rule("release-unknown", "open", "error", "no release has the keys and shapes of the checkpoint"),
        Rule("release-step", "recipe", "error", "a release's recipe does not give the next release's table"),
        Rule(
            "release-drift",
            "compare",
            "error",
            "today's model saves something else than the last release: make a new one",
        ),
        Rule("loader-error", "load", "error", "the loader under test raised, or gave no model"),
        Rule(
            "loader-missed",
            "verify",
            "error",
            "after the loader ran, a key holds no values of the checkpoint",
        ),
        Rule(
            "loader-other",
            "verify",
            "error",
            "the loader gave a key other values than the checkpoint has under its name",
        ),
        Rule("loader-unused", "verify", "warn", "a tensor of the checkpoint reached nothing in the model"),
        Rule("unsafe-pickle", "open", "warn", "torch.load(weights_only=True) would refuse this file"),
        Rule(
            "no-checkpoint",
            "open",
            "error",
            "a marked test was given no checkpoint, or one that can't be read",
        ),
        Rule("forward-error", "forward", "error", "the forward pass raised"),
        Rule("forward-memory", "forward", "error", "the forward pass on CUDA needs more than max_memory"),
        Rule("forward-non-finite", "forward", "error", "the forward pass gave NaN or infinite values"),
        Rule(
            "forward-no-cuda", "forward", "error", "--ckpt-require-cuda: the forward pass did not run on CUDA"
        ),
        Rule(
            "forward-disagree", "forward", "error", "CUDA and CPU outputs differ beyond the dtype's tolerance"
        ),
        Rule(
            "recipe-error",
            "recipe",
            "error",
            "the recipe can't be built or does not apply to this checkpoint",
        ),
        Rule(
            "recipe-unused-op",
            "recipe",
            "error",
            "an operator of the recipe matches nothing or changes nothing",
        ),
        Rule(
            "source-model-error",
            "source",
            "error",
            "source_model can't be built, or does not load the checkpoint",
        ),
        Rule(
            "recipe-protected-key", "verify", "error", "the recipe touches a key that protect= keeps as it is"
        ),
        Rule(
            "recipe-broken-promise", "verify", "error", "the recipe did not keep what its operators promise"
        ),
        Rule(
            "recipe-unproved",
            "verify",
            "error",
            "a promise of the recipe could not be proved: its proof raised",
        ),
        Rule(
            "function-changed",
            "verify",
            "error",
            "an output that existed differs, beyond what a step declares",
        ),
        Rule("function-uncompared", "verify", "warn", "the old and the new outputs could not be compared"),
        Rule("recipe-scale", "verify", "warn", "new rows are much larger or smaller than the old ones"),
        Rule(
            "recipe-symmetric-units",
            "verify",
            "warn",
            "two hidden units are identical and nothing breaks the tie",
        ),
        Rule("recipe-unchecked", "verify", "warn", "a custom step is not checked beyond what it declares"),
        Rule(
            "optimizer-missing",
            "optimizer",
            "warn",
            "the checkpoint has no optimizer state to check, or some that can't be carried along",
        ),
        Rule("optimizer-shape", "optimizer", "error", "optimizer state has another shape than its parameter"),
        Rule(
            "optimizer-value",
            "optimizer",
            "error",
            "optimizer state is not finite, or a second moment is negative",
        ),
        Rule("optimizer-error", "optimizer", "error", "the optimizer refused the state, or its step raised"),
        Rule(
            "optimizer-restart",
            "optimizer",
            "warn",
            "zero moments beside a kept step: the first updates will be large",
        ),
        Rule("waiver-unused", "waivers", "error", "a waiver matches no finding"),
        Rule("waiver-expired", "waivers", "error", "a waiver's date has passed"),
    )
}
