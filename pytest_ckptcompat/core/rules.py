"""The rules: id, severity, meaning."""

from __future__ import annotations

from typing import Literal, NamedTuple

Severity = Literal["error", "warn", "off"]


class Rule(NamedTuple):
    """A rule's id, its severity unless ``ckpt_severity`` says otherwise, and what it means."""

    id: str
    severity: Severity
    meaning: str


RULES: dict[str, Rule] = {
    rule.id: rule
    for rule in (
        Rule("missing-key", "error", "the model needs a key that the checkpoint does not have"),
        Rule("unexpected-key", "error", "the checkpoint has a key that the model does not know"),
        Rule("shape-mismatch", "error", "a key has different shapes in checkpoint and model"),
        Rule("rollback-missing", "error", "the released model needs a key that today's model has not"),
        Rule(
            "rollback-unexpected",
            "error",
            "today's model has a key that the released model does not know",
        ),
        Rule("rollback-mismatch", "error", "a key has other shapes in the released and in today's model"),
        Rule("load-error", "error", "the model's own load_state_dict refused the checkpoint"),
        Rule("model-error", "error", "the model could not be built"),
        Rule("dtype-mismatch", "warn", "loading converts values to another dtype and loses some of them"),
        Rule("non-finite-value", "warn", "values that were loaded are NaN or infinite"),
        Rule("tied-conflict", "error", "names that the model ties have different values in the checkpoint"),
        Rule("unloaded-parameter", "error", "after loading, a parameter is on meta or still as constructed"),
        Rule("unsafe-pickle", "warn", "torch.load(weights_only=True) would refuse this file"),
        Rule("no-checkpoint", "error", "a marked test was given no checkpoint, or one that can't be read"),
        Rule("forward-error", "error", "the forward pass raised"),
        Rule("forward-non-finite", "error", "the forward pass gave NaN or infinite values"),
        Rule("forward-no-cuda", "error", "--ckpt-require-cuda: the forward pass did not run on CUDA"),
        Rule("forward-disagree", "error", "CUDA and CPU outputs differ beyond the dtype's tolerance"),
        Rule("recipe-error", "error", "the recipe can't be built or does not apply to this checkpoint"),
        Rule("recipe-unused-op", "error", "an operator of the recipe matches nothing or changes nothing"),
        Rule("source-model-error", "error", "source_model can't be built, or does not load the checkpoint"),
        Rule("recipe-protected-key", "error", "the recipe touches a key that protect= keeps as it is"),
        Rule("recipe-broken-promise", "error", "the recipe did not keep what its operators promise"),
        Rule("recipe-scale", "warn", "new rows are much larger or smaller than the old ones"),
        Rule("recipe-symmetric-units", "warn", "two hidden units are identical and nothing breaks the tie"),
        Rule("recipe-unchecked", "warn", "a custom step is not checked beyond what it declares"),
        Rule("optimizer-missing", "warn", "the checkpoint has no optimizer state to check"),
        Rule("optimizer-shape", "error", "optimizer state has another shape than its parameter"),
        Rule("optimizer-value", "error", "optimizer state is not finite, or a second moment is negative"),
        Rule("optimizer-error", "error", "the optimizer refused the state, or its step raised"),
        Rule("optimizer-restart", "warn", "zero moments beside a kept step: the first updates will be large"),
        Rule("waiver-unused", "error", "a waiver matches no finding"),
        Rule("waiver-expired", "error", "a waiver's date has passed"),
    )
}
