"""For each rule, an example that breaks it and a remedy."""

from __future__ import annotations

from typing import NamedTuple


class Remedy(NamedTuple):
    """An example of a broken rule and what to do about it, each one or two sentences."""

    example: str
    remedy: str


REMEDIES: dict[str, Remedy] = {
    "missing-key": Remedy(
        "A layer was added, or renamed: `neck.weight` is new in the model.",
        "Rename the old key with `rename`, or add the new one with `add`; the report suggests a recipe where "
        "one makes it load.",
    ),
    "unexpected-key": Remedy(
        "A layer was removed: the file still has `aux.weight`. Or a wrapper's prefix is there: `module.*`.",
        "Leave the keys out with `drop`, take a prefix off with `strip_prefix`, or waive the finding.",
    ),
    "shape-mismatch": Remedy(
        "`out2 = Linear(256, 4)` became `Linear(256, 14)`: (4, 256) in the file, (14, 256) in the model.",
        "Grow the tensor with a recipe, such as `tile` or `append`, or give the changed layer a new name.",
    ),
    "rollback-missing": Remedy(
        "Today's model has no `aux.weight`, which the released model needs.",
        "Keep the key until the released model is gone, or release a model that does without it first.",
    ),
    "rollback-unexpected": Remedy(
        "Today's model saves `neck.weight`, which the released model refuses.",
        "Release a model that ignores the key first, or give up `direction=` for this change.",
    ),
    "rollback-mismatch": Remedy(
        "Today's model saves `out2.weight` as (14, 256), and the released model expects (4, 256).",
        "A rollback needs the old checkpoints: keep them, and waive the finding with that reason.",
    ),
    "load-error": Remedy(
        "A hook of the model raises: `KeyError: 'tokenizer'`.",
        "Fix the hook or `_load_from_state_dict` of the module that is named, for old checkpoints too.",
    ),
    "model-error": Remedy(
        "`model:Nett` is mistyped, or the constructor raises.",
        "Name a callable that takes no arguments, or give them as `model_args=`.",
    ),
    "dtype-mismatch": Remedy(
        "The file has float32, the model bfloat16: loading rounds the values.",
        "Convert once and for all with `cast` and `ckptcompat apply`, or waive the finding.",
    ),
    "non-finite-value": Remedy(
        "A training run diverged, and its last checkpoint holds NaN.",
        "Go back to an earlier checkpoint; where -inf is meant, as in a mask, waive the key.",
    ),
    "tied-conflict": Remedy(
        "The model ties `lm_head.weight` to `embed.weight`, and the file has two different tensors.",
        "Untie them in the model, or say which one is meant: `tie([...])` takes the first.",
    ),
    "unloaded-parameter": Remedy(
        "The model's own `load_state_dict` leaves `head.weight` as it was constructed.",
        "Load the key there, or leave it out of the state dict if it is not to be saved.",
    ),
    "extra-state-unread": Remedy(
        "A module saved an object of a class as its extra state.",
        "Save plain values in `get_extra_state`; until then the tensors alone are checked.",
    ),
    "release-unknown": Remedy(
        'A checkpoint of a branch that was never released, checked with `recipe="releases.toml"`.',
        "Add its release with a lock and a recipe, or give the checkpoint a recipe of its own.",
    ),
    "release-step": Remedy(
        "The recipe of v1 tiles `out2.weight` and forgets `out2.bias`, which v2 has with 14 rows, too.",
        "Complete the recipe of the release that is named: it must give every key of the next one's lock.",
    ),
    "release-drift": Remedy(
        "A pull request changes `out2` from 14 to 15 outputs, and there is no release for it.",
        "Undo the change, or make its release: `ckptcompat release NAME MODEL --releases FILE`.",
    ),
    "loader-error": Remedy(
        "`load_detector(path)` raises, or returns None.",
        "Fix the loader: it takes the checkpoint's path and returns the loaded model.",
    ),
    "loader-missed": Remedy(
        "`load_state_dict(..., strict=False)` with a wrong prefix loads nothing, and says nothing.",
        "Load strictly, or fix how the loader filters and renames keys.",
    ),
    "loader-other": Remedy(
        "The loader swaps q and k, or puts new values over the loaded head.",
        "Fix the loader; where another value is meant, declare it as a recipe.",
    ),
    "loader-unused": Remedy(
        "The loader filters out `bn.running_mean`.",
        "Load the tensor, or waive the key if it is left out on purpose.",
    ),
    "unsafe-pickle": Remedy(
        "The file names a class of your own, such as a config object beside the weights.",
        "Save tensors and plain values only, or write the checkpoint again with `ckptcompat apply`.",
    ),
    "no-checkpoint": Remedy(
        "`--ckpt` names a file that is truncated, or a pointer of Git LFS.",
        "The message says what the file is: fetch it again, name another one, or give `--ckpt PATH`.",
    ),
    "forward-error": Remedy(
        "The model calls `.view` with the old number of channels.",
        "Fix the model at the line that is named; if the declared `inputs` are wrong, fix those.",
    ),
    "forward-memory": Remedy(
        'A larger head takes 26 GB where `max_memory="24GB"` is declared.',
        "Use a smaller batch or model, or raise the limit.",
    ),
    "forward-non-finite": Remedy(
        "A logarithm of zero in the forward pass, or weights that diverged.",
        "Look for `non-finite-value` first; then for the operation that gives NaN on the declared inputs.",
    ),
    "forward-no-cuda": Remedy(
        "A CI job was moved to a machine without a card.",
        "Run it on a card, or leave `--ckpt-require-cuda` out: the pass is then rehearsed.",
    ),
    "forward-disagree": Remedy(
        "A layer treats float16 on the card otherwise than on the CPU.",
        "Compare the layer that differs on both devices, or declare the device that counts.",
    ),
    "recipe-error": Remedy(
        '`tile("out2.*", dim=3)`: the tensor has two dimensions.',
        "Fix the operator that the message names; `ckptcompat operators NAME` shows its arguments.",
    ),
    "recipe-unused-op": Remedy(
        '`drop("aux.*")` and no key begins with `aux.`.', "Fix the pattern, or remove the operator."
    ),
    "source-model-error": Remedy(
        "`source_model` is today's model, not the one that the checkpoint was made for.",
        'Name the old model; keep its class in the tests, or use `source_model="git:REF"`.',
    ),
    "recipe-protected-key": Remedy(
        '`protect=("backbone.*",)` and an operator with the pattern `*`.',
        "Narrow the operator's pattern, or protect less.",
    ),
    "recipe-broken-promise": Remedy(
        "An operator of your own leaves the old rows changed.",
        "Fix the operator; if it is one of the package, report it with `ckptcompat show --json`.",
    ),
    "recipe-unproved": Remedy(
        "The proof of an operator of your own raises.",
        "Fix its `prove` method: what can't be proved is never passed.",
    ),
    "function-changed": Remedy(
        "ReLU became GELU: all keys fit, and the outputs differ.",
        "Undo the change, or declare it: `custom(..., keeps_function=False)`, or a waiver.",
    ),
    "function-uncompared": Remedy(
        "The model draws random numbers in eval mode, or returns other outputs than before.",
        "Make the forward pass deterministic in eval mode, or waive the finding.",
    ),
    "recipe-scale": Remedy(
        "New rows were drawn with standard deviation 1 beside rows of 0.06.",
        "Use the default `std` of `append`, which is that of the old rows, or `tile`.",
    ),
    "recipe-symmetric-units": Remedy(
        '`widen` with `split="equal"`: two units are alike and stay so in training.',
        'Use `split="unequal"`, or `noise_std`.',
    ),
    "recipe-unchecked": Remedy(
        "A `custom` step: what it does is known to itself alone.",
        "Use operators where they can say it; else waive the finding with what was checked by hand.",
    ),
    "optimizer-missing": Remedy(
        "`optimizer=` is declared, and the file holds the weights alone.",
        "Check the file of the trainer, or give `--optimizer-state PATH`.",
    ),
    "optimizer-shape": Remedy(
        "`out2.weight` was grown by hand, and its `exp_avg` was not.",
        "Write the checkpoint with `ckptcompat apply`, which grows both.",
    ),
    "optimizer-value": Remedy(
        "`exp_avg_sq` is negative or NaN.",
        "Go back to an earlier checkpoint, or start the optimizer from scratch.",
    ),
    "optimizer-error": Remedy(
        "The parameter groups of the optimizer were regrouped.",
        "Build the groups as they were saved, or start the optimizer from scratch.",
    ),
    "optimizer-restart": Remedy(
        "New rows have zero moments and the step count of the old ones.",
        'Warm the learning rate up, or give the operator `optim="copy"`.',
    ),
    "waiver-unused": Remedy(
        "The key that was waived is gone from the file.", "Remove the waiver, or fix its key."
    ),
    "waiver-expired": Remedy(
        '`until="2027-06-30"`, and it is July.', "Fix what was waived, or set a later date with a reason."
    ),
}
