"""Random networks, random edits: what is offered as right keeps the function, or says by how much it does not.

``CKPTCOMPAT_PAIRS=2000 pytest`` tries so many pairs.
"""

from __future__ import annotations

import os
import random

import torch
from random_networks import Net, edited, inputs_of, random_spec
from suggesting import lived, loaded

from pytest_ckptcompat import check

PAIRS = int(os.environ.get("CKPTCOMPAT_PAIRS", "20"))
RIGHT, WRONG = "With it the outputs are those of source_model", "It does not keep the model's function"
UNTOLD = "Whether it keeps the model's function was not compared"


def apart(spec, other, state, recipe, make, seed):
    """How far the outputs are from the old ones in float64, where both have them, of the largest."""
    made = {}  # names of one tensor stay those of one
    wide = {
        key: made.setdefault(value.data_ptr(), value.double() if value.is_floating_point() else value)
        for key, value in state.items()
    }
    old, new = Net(spec).double().eval(), loaded(Net(other).double(), wide, recipe)
    old.load_state_dict(wide)
    torch.manual_seed(seed)
    x = make()
    with torch.no_grad():
        before, after = (model(x.double() if x.is_floating_point() else x) for model in (old, new))
    both = tuple(slice(0, min(sizes)) for sizes in zip(before.shape, after.shape, strict=True))
    return float((before[both] - after[both]).abs().max() / before.abs().max())


def tried(seed, folder):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    spec = random_spec(rng)
    other, names = edited(rng, spec)
    state = lived(Net(spec), seed).state_dict()
    path = folder / "old.pth"
    torch.save(state, path)
    make = inputs_of(spec)
    report = check(lambda: Net(other), path, inputs=make, source_model=lambda: Net(spec), device="cpu")
    if report.suggestion is None:
        misfits = report.missing or report.unexpected or report.mismatched
        return "silent" if misfits and report.remedy is None else "absent"
    about = " ".join(report.remedy.notes)
    if RIGHT in about:
        worst = max(apart(spec, other, state, report.suggestion, make, each) for each in range(3))
        assert worst < 1e-9, f"seed {seed}, {names}: {report.suggestion!r} is {worst:.2g} off"
        return "right"
    assert WRONG in about or UNTOLD in about, (
        f"seed {seed}, {names}: nothing is said of {report.suggestion!r}"
    )
    return "told" if WRONG in about else "untold"


def test_what_is_offered_as_right_is_right(tmp_path):
    found = [tried(seed, tmp_path) for seed in range(PAIRS)]
    counts = {kind: found.count(kind) for kind in ("right", "told", "untold", "absent", "silent")}
    assert counts["silent"] == 0, counts
    assert counts["right"] >= 0.3 * PAIRS, counts
    assert counts["untold"] <= 0.2 * PAIRS, counts
