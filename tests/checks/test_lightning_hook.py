"""A LightningModule's own hook on the checkpoint is run as Lightning runs it, or named as not run."""

import pytest
import torch
from torch import nn

from pytest_ckptcompat import MisfitError, Recipe, check, load, open_checkpoint, tile
from pytest_ckptcompat.checks.apply import apply_declared
from pytest_ckptcompat.checks.arguments import CheckArguments
from pytest_ckptcompat.checks.check import Check


class LightningModule(nn.Module):
    """Stands where Lightning's own would."""

    def on_load_checkpoint(self, checkpoint):
        pass


LightningModule.__module__ = "lightning.pytorch.core.module"


class Plain(LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4)

    def forward(self, x):
        return self.encoder(x)


class Migrating(Plain):
    def on_load_checkpoint(self, checkpoint):
        state = checkpoint["state_dict"]
        for key in [key for key in state if key.startswith(checkpoint["hyper_parameters"]["old"])]:
            state["encoder." + key.partition(".")[2]] = state.pop(key)


class Growing(Migrating):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 8)


@pytest.fixture
def trainers(tmp_path, monkeypatch):
    """A Trainer's checkpoint whose keys begin with another name."""
    monkeypatch.chdir(tmp_path)
    state = {f"body.{key}": value for key, value in nn.Linear(4, 4).state_dict().items()}
    whole = {"epoch": 1, "state_dict": state, "hyper_parameters": {"old": "body."}, "callbacks": {}}
    torch.save(whole, "old.ckpt")
    return whole


def test_a_hook_that_migrates_is_run_for_shapes_and_values(trainers):
    run = Check(
        CheckArguments.of(model=Migrating, inputs=(2, 4)),
        "old.ckpt",
        lambda key: open_checkpoint("old.ckpt", key),
    )
    report = run.run()
    assert report.ok, str(report)
    assert report.verdict == "old.ckpt fits test_lightning_hook.Migrating: 2 of 2 keys match"
    assert "Migrating.on_load_checkpoint was run" in " ".join(str(report).split())
    assert type(run.shown_model) is Migrating
    assert torch.equal(run.shown_model.encoder.weight, trainers["state_dict"]["body.weight"])
    assert not check(Plain, "old.ckpt").ok
    assert "on_load_checkpoint" not in str(check(Plain, "old.ckpt"))


@pytest.mark.parametrize("model", [Migrating, Migrating()], ids=["callable", "module"])
def test_what_passes_with_a_hook_is_loaded(trainers, model):
    loaded = load(model, "old.ckpt")
    assert type(loaded) is Migrating
    assert loaded is model or model is Migrating
    assert torch.equal(loaded.encoder.weight, trainers["state_dict"]["body.weight"])
    with pytest.raises(MisfitError):
        load(Growing(), "old.ckpt")


def test_what_passes_with_a_hook_is_written(trainers):
    declared = CheckArguments.of(model=Growing, recipe=Recipe(tile("body.*", dim=0, to=8)))
    assert check(Growing, "old.ckpt", recipe=declared.recipe).ok
    apply_declared(declared, lambda key: open_checkpoint("old.ckpt", key), "new.ckpt")
    assert check(Growing, "new.ckpt", inputs=(2, 4)).ok


def test_a_hook_that_can_not_be_run_is_named(trainers):
    torch.save(trainers["state_dict"], "bare.pth")
    told = " ".join(str(check(Migrating, "bare.pth")).split())
    assert "Migrating.on_load_checkpoint was not run: this is not a Trainer's" in told
    del trainers["hyper_parameters"]
    torch.save(trainers, "without.ckpt")
    report = check(Migrating, "without.ckpt")
    assert not report.ok
    (told,) = [stage.detail for stage in report.stages if stage.name == "compare"]
    assert (
        "Migrating.on_load_checkpoint was not run: KeyError: 'hyper_parameters' (test_lightning_hook.py:"
        in told
    )
