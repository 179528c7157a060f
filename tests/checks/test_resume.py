"""A training that is to go on, as a user checks it: a whole pytest run, and the command.

A fused Adam with state of the old shape corrupts the heap at its first step, so it must be told before.
"""

from pathlib import Path

import pytest
import torch
from networks import Boxes, settle

from pytest_ckptcompat import open_checkpoint
from pytest_ckptcompat.cli import main

RECIPE = '[[recipe]]\nop = "tile"\nkey = "out2.*"\ndim = 0\n'
TESTS = """
    import pytest
    from networks import Boxes, Grown
    from pytest_ckptcompat import Recipe, tile

    from training import adam

    GROW = Recipe(tile("out2.*", dim=0))

    @pytest.mark.ckpt_compat(
        model=Grown, ckpt="old.pth", inputs=(4, 3, 8, 8), optimizer=adam, recipe=GROW, source_model=Boxes
    )
    def test_grown(ckpt_model, ckpt_report):
        details = {promise.name: promise.detail for promise in ckpt_report.promises}
        assert details["optimizer state"] == "Adam: 19 of 19 by name, old rows of 2 kept"
        assert details["optimizer step"] == "one step of Adam, all finite"

    @pytest.mark.ckpt_compat(model=Grown, ckpt="forgotten.pth", inputs=(4, 3, 8, 8), optimizer=adam)
    def test_forgotten():
        ...
"""


@pytest.fixture
def training(pytester):
    """``old.pth``: weights and a fused Adam of four rows. ``forgotten.pth``: fourteen rows, and the same Adam."""
    model = settle(Boxes()).train()
    adam = torch.optim.Adam(model.parameters(), lr=0.001, fused=True)
    for step in range(3):
        confidence, places = model(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step)))
        adam.zero_grad()
        (confidence.mean() + places.square().mean()).backward()
        adam.step()
    torch.save({"model": model.state_dict(), "optimizer": adam.state_dict()}, "old.pth")
    grown = model.state_dict()
    for key in ("out2.weight", "out2.bias"):
        grown[key] = torch.cat([grown[key]] * 3 + [grown[key][:2]])
    torch.save({"model": grown, "optimizer": adam.state_dict()}, "forgotten.pth")
    Path("grow.toml").write_text(RECIPE, encoding="utf-8")
    Path("training.py").write_text(
        "import torch\n\ndef adam(parameters):\n    return torch.optim.Adam(parameters, lr=0.001, fused=True)\n",
        encoding="utf-8",
    )
    return pytester


@pytest.fixture
def command(training, monkeypatch, capsys):
    """The command in the folder of the training: its exit code, and all it says."""
    monkeypatch.syspath_prepend(".")

    def run(*arguments):
        code = main(arguments)
        return code, " ".join("".join(capsys.readouterr()).split())

    return run


def test_one_step_is_taken_with_old_moments_kept_and_none_where_the_shape_is_the_old_one(training):
    training.makepyfile(TESTS)
    training.syspathinsert()
    result = training.runpytest()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.re_match_lines([r"optimizer-shape +out2\.weight +exp_avg \(4, 8\) f32 +\(14, 8\) f32.*"])
    result.stdout.re_match_lines([r"optimizer +failed.*"])
    result.stdout.no_re_match_line(r"optimizer step +(kept|broken|unchecked).*")


def test_the_command_says_the_same(command):
    check = ("--optimizer", "training:adam", "--device", "cpu")
    code, text = command("check", "forgotten.pth", "networks:Grown", *check)
    assert code == 1
    assert "exp_avg (4, 8) f32" in text
    code, text = command("check", "old.pth", "networks:Grown", "--recipe", "grow.toml", *check)
    assert code == 0, text
    assert "Adam: 19 of 19 by name, old rows of 2 kept" in text
    assert "one step of Adam, all finite" in text


def test_what_apply_writes_goes_on_in_torch_itself(command):
    """The grown file, without us: torch loads it, steps, and the old rows have the moments that they had."""
    code, text = command("apply", "old.pth", "networks:Grown", "--recipe", "grow.toml", "-o", "new.pth")
    assert code == 0, text
    assert "optimizer is grown too" in text
    old, new = (torch.load(path, weights_only=True) for path in ("old.pth", "new.pth"))
    model = Boxes(14)
    model.load_state_dict(new["model"])
    adam = torch.optim.Adam(model.parameters(), lr=0.001, fused=True)
    adam.load_state_dict(new["optimizer"])
    for name, number in (("out2.weight", -2), ("out2.bias", -1)):
        place = new["optimizer"]["param_groups"][0]["params"][number]
        before, after = old["optimizer"]["state"][place], adam.state[dict(model.named_parameters())[name]]
        assert float(after["step"]) == 3
        for slot in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(after[slot][:4], before[slot])
            assert after[slot].shape == dict(model.named_parameters())[name].shape
    sum(output.square().sum() for output in model.train()(torch.randn(4, 3, 8, 8))).backward()
    adam.step()
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    code, text = command(
        "check", "new.pth", "networks:Grown", "--optimizer", "training:adam", "--device", "cpu"
    )
    assert code == 0, text
    assert "19 of 19 by name" in text
    assert open_checkpoint("new.pth")["out2.weight"].shape == (14, 8)
