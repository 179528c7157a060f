"""The rules: id, stage, severity, meaning, an example that breaks it, and what to do."""

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
        example: how it is broken, in one or two sentences.
        remedy: what to do about it.
    """

    id: str
    stage: Kind
    severity: Severity
    meaning: str
    example: str
    remedy: str


def unknown(rule: object) -> str:
    """Return the message for an unknown rule, with the rule that may have been meant."""
    near = difflib.get_close_matches(str(rule), RULES, 1)
    hint = f"did you mean {near[0]!r}?" if near else "'ckptcompat rules' lists them"
    return f"no rule {rule!r}: {hint}"


# fmt: off
_ALL = (
    Rule("missing-key", "compare", "error", "the model needs a key that the checkpoint does not have",
         "A layer was added, or renamed: `neck.weight` is new in the model.",
         "Rename the old key with `rename`, or add the new one with `add`; the report suggests a recipe "
         "where one makes it load."),
    Rule("unexpected-key", "compare", "error", "the checkpoint has a key that the model does not know",
         "A layer was removed: the file still has `aux.weight`. Or a wrapper's prefix is there: `module.*`.",
         "Leave the keys out with `drop`, take a prefix off with `strip_prefix`, or waive the finding."),
    Rule("shape-mismatch", "compare", "error", "a key has different shapes in checkpoint and model",
         "`out2 = Linear(256, 4)` became `Linear(256, 14)`: (4, 256) in the file, (14, 256) in the model.",
         "Grow the tensor with a recipe, such as `tile` or `append`, or give the changed layer a new name."),
    Rule("rollback-missing", "rollback", "error",
         "the released model needs a key that today's model does not have",
         "Today's model has no `aux.weight`, which the released model needs.",
         "Keep the key until the released model is gone, or release a model that does without it first."),
    Rule("rollback-unexpected", "rollback", "error",
         "today's model has a key that the released model does not know",
         "Today's model saves `neck.weight`, which the released model refuses.",
         "Release a model that ignores the key first, or give up `direction=` for this change."),
    Rule("rollback-mismatch", "rollback", "error",
         "a key has other shapes in the released and in today's model",
         "Today's model saves `out2.weight` as (14, 256), and the released model expects (4, 256).",
         "A rollback needs the old checkpoints: keep them, and waive the finding with that reason."),
    Rule("load-error", "compare", "error", "the model's own load_state_dict refused the checkpoint",
         "A hook of the model raises: `KeyError: 'tokenizer'`.",
         "Fix the hook or `_load_from_state_dict` of the module that is named, for old checkpoints too."),
    Rule("model-error", "build", "error", "the model could not be built",
         "`model:Nett` is mistyped, or the constructor raises.",
         "Name a callable that takes no arguments, or give its arguments as `model_args=`."),
    Rule("dtype-mismatch", "compare", "warn",
         "loading converts values to another dtype and loses some of them",
         "The file has float32, the model bfloat16: loading rounds the values.",
         "Convert once and for all with `cast` and `ckptcompat apply`, or waive the finding."),
    Rule("non-finite-value", "load", "warn", "values that were loaded are NaN or infinite",
         "A training run diverged, and its last checkpoint holds NaN.",
         "Go back to an earlier checkpoint; where -inf is meant, as in a mask, waive the key."),
    Rule("tied-conflict", "load", "error",
         "names that the model ties have different values in the checkpoint",
         "The model ties `lm_head.weight` to `embed.weight`, and the file has two different tensors.",
         "Untie them in the model, or say which one is meant: `tie([...])` takes the first."),
    Rule("unloaded-parameter", "load", "error",
         "after loading, a parameter is on meta or still as constructed",
         "The model's own `load_state_dict` leaves `head.weight` as it was constructed.",
         "Load the key there, or leave it out of the state dict if it is not to be saved."),
    Rule("extra-state-unread", "compare", "warn",
         "extra state can't be read without running what the file names; the tensors alone were judged",
         "A module saved an object of a class as its extra state.",
         "Save plain values in `get_extra_state`; until then the tensors alone are checked."),
    Rule("release-unknown", "open", "error", "no release has the keys and shapes of the checkpoint",
         'A checkpoint of a branch that was never released, checked with `recipe="releases.toml"`.',
         "Add its release with a lock and a recipe, or give the checkpoint a recipe of its own."),
    Rule("release-step", "recipe", "error", "a release's recipe does not give the next release's table",
         "The recipe of v1 tiles `out2.weight` and forgets `out2.bias`, which v2 has with 14 rows, too.",
         "Complete the recipe of the release that is named: it must give every key of the next one's lock."),
    Rule("release-drift", "compare", "error",
         "today's model saves something else than the last release: make a new one",
         "A pull request changes `out2` from 14 to 15 outputs, and there is no release for it.",
         "Undo the change, or make its release: `ckptcompat release NAME MODEL --releases FILE`."),
    Rule("loader-error", "load", "error", "the loader under test raised, or gave no model",
         "`load_detector(path)` raises, or returns None.",
         "Fix the loader: it takes the checkpoint's path and returns the loaded model."),
    Rule("loader-missed", "verify", "error", "after the loader ran, a key holds no values of the checkpoint",
         "`load_state_dict(..., strict=False)` with a wrong prefix loads nothing, and says nothing.",
         "Load strictly, or fix how the loader filters and renames keys."),
    Rule("loader-other", "verify", "error",
         "the loader gave a key other values than the checkpoint has under its name",
         "The loader swaps q and k, or puts new values over the loaded head.",
         "Fix the loader; where another value is meant, declare it as a recipe."),
    Rule("loader-unused", "verify", "warn", "a tensor of the checkpoint reached nothing in the model",
         "The loader filters out `bn.running_mean`.",
         "Load the tensor, or waive the key if it is left out on purpose."),
    Rule("unsafe-pickle", "open", "warn", "torch.load(weights_only=True) would refuse this file",
         "The file names a class of your own, such as a config object beside the weights.",
         "Save tensors and plain values only, or write the checkpoint again with `ckptcompat apply`."),
    Rule("no-checkpoint", "open", "error", "a marked test was given no checkpoint, or one that can't be read",
         "`--ckpt` names a file that is truncated, or a pointer of Git LFS.",
         "The message says what the file is: fetch it again, name another one, or give `--ckpt PATH`."),
    Rule("forward-error", "forward", "error", "the forward pass raised",
         "The model calls `.view` with the old number of channels.",
         "Fix the model at the line that is named; if the declared `inputs` are wrong, fix those."),
    Rule("forward-memory", "forward", "error", "the forward pass on CUDA needs more than max_memory",
         'A larger head takes 26 GB where `max_memory="24GB"` is declared.',
         "Use a smaller batch or model, or raise the limit."),
    Rule("forward-non-finite", "forward", "error", "the forward pass gave NaN or infinite values",
         "A logarithm of zero in the forward pass, or weights that diverged.",
         "First look for `non-finite-value`, then for the operation that gives NaN on the declared inputs."),
    Rule("forward-no-cuda", "forward", "error", "--ckpt-require-cuda: the forward pass did not run on CUDA",
         "A CI job was moved to a machine without a card.",
         "Run it on a card, or leave out `--ckpt-require-cuda`: then the pass is rehearsed."),
    Rule("forward-disagree", "forward", "error", "CUDA and CPU outputs differ beyond the dtype's tolerance",
         "A layer handles float16 differently on the card and on the CPU.",
         "Compare the layer that differs on both devices, or declare the device that counts."),
    Rule("recipe-error", "recipe", "error", "the recipe can't be built or does not apply to this checkpoint",
         '`tile("out2.*", dim=3)`: the tensor has two dimensions.',
         "Fix the operator that the message names; `ckptcompat operators NAME` shows its arguments."),
    Rule("recipe-unused-op", "recipe", "error",
         "an operator of the recipe matches nothing or changes nothing",
         '`drop("aux.*")` and no key begins with `aux.`.',
         "Fix the pattern, or remove the operator."),
    Rule("source-model-error", "source", "error",
         "source_model can't be built, or does not load the checkpoint",
         "`source_model` is today's model, not the one that the checkpoint was made for.",
         'Name the old model; keep its class in the tests, or use `source_model="git:REF"`.'),
    Rule("recipe-protected-key", "verify", "error", "the recipe touches a key that protect= keeps as it is",
         '`protect=("backbone.*",)` and an operator with the pattern `*`.',
         "Narrow the operator's pattern, or protect less."),
    Rule("recipe-broken-promise", "verify", "error", "the recipe did not keep what its operators promise",
         "An operator of your own leaves the old rows changed.",
         "Fix the operator; if it is one of the package, report it with `ckptcompat show --json`."),
    Rule("recipe-unproved", "verify", "error",
         "a promise of the recipe could not be proved: its proof raised",
         "The proof of an operator of your own raises.",
         "Fix its `prove` method: a promise that can't be proved never passes."),
    Rule("function-changed", "verify", "error", "an output that existed differs, beyond what a step declares",
         "ReLU became GELU: all keys fit, and the outputs differ.",
         "Undo the change, or declare it: `custom(..., keeps_function=False)`, or a waiver."),
    Rule("function-uncompared", "verify", "warn", "the old and the new outputs could not be compared",
         "The model draws random numbers in eval mode, or returns other outputs than before.",
         "Make the forward pass deterministic in eval mode, or waive the finding."),
    Rule("recipe-scale", "verify", "warn", "new rows are much larger or smaller than the old ones",
         "New rows were drawn with standard deviation 1 beside rows of 0.06.",
         "Use the default `std` of `append`, which is that of the old rows, or `tile`."),
    Rule("recipe-symmetric-units", "verify", "warn",
         "two hidden units are identical and nothing breaks the tie",
         '`widen` with `split="equal"`: two units are alike and stay so in training.',
         'Use `split="unequal"`, or `noise_std`.'),
    Rule("recipe-unchecked", "verify", "warn", "a custom step is not checked beyond what it declares",
         "A `custom` step: only its function knows what it does.",
         "Use operators that can express it, or waive the finding and say what you checked by hand."),
    Rule("optimizer-missing", "optimizer", "warn",
         "the checkpoint has no optimizer state to check, or some that can't be carried along",
         "`optimizer=` is declared, and the file holds the weights alone.",
         "Check the file of the trainer, or give `--optimizer-state PATH`."),
    Rule("optimizer-shape", "optimizer", "error", "optimizer state has another shape than its parameter",
         "`out2.weight` was grown by hand, and its `exp_avg` was not.",
         "Write the checkpoint with `ckptcompat apply`, which grows both."),
    Rule("optimizer-value", "optimizer", "error",
         "optimizer state is not finite, or a second moment is negative",
         "`exp_avg_sq` is negative or NaN.",
         "Go back to an earlier checkpoint, or start the optimizer from scratch."),
    Rule("optimizer-error", "optimizer", "error", "the optimizer refused the state, or its step raised",
         "The parameter groups of the optimizer were regrouped.",
         "Build the groups as they were saved, or start the optimizer from scratch."),
    Rule("optimizer-restart", "optimizer", "warn",
         "zero moments beside a kept step: the first updates will be large",
         "New rows have zero moments and the step count of the old ones.",
         'Warm the learning rate up, or give the operator `optim="copy"`.'),
    Rule("waiver-unused", "waivers", "error", "a waiver matches no finding",
         "The key that was waived is gone from the file.",
         "Remove the waiver, or fix its key."),
    Rule("waiver-expired", "waivers", "error", "a waiver's date has passed",
         '`until="2027-06-30"`, and it is July.',
         "Fix what was waived, or set a later date with a reason."),
)
# fmt: on

RULES: dict[str, Rule] = {rule.id: rule for rule in _ALL}
