"""Locks that record what a model computes: a gate without weights, history or the old class."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from repositories import Repository

from pytest_ckptcompat import Recipe, check, open_checkpoint, scale, tile
from pytest_ckptcompat.checkpoint.lock_writer import write_lock
from pytest_ckptcompat.checks.locks import lock_of_model, update
from pytest_ckptcompat.checks.past_checkpoint import Question
from pytest_ckptcompat.cli.command import main
from pytest_ckptcompat.core.limits import DEFAULT

NET = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, outputs=4):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("order", torch.tensor([5, 4, 3, 2, 1, 0]))
        self.fc = nn.Linear(6, 8)
        self.out2 = nn.Linear(8, outputs)

    def forward(self, x):
        return self.out2(F.relu(self.fc(self.norm(x)[:, self.order])))

    def encode(self, x):
        return F.relu(self.fc(x))
"""

GROW = Recipe(tile("out2.*", dim=0))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    today(NET)
    yield tmp_path
    sys.modules.pop("lockmodel", None)


def today(text):
    Path("lockmodel.py").write_text(text)
    sys.modules.pop("lockmodel", None)


def lock(*arguments):
    assert main(["lock", *arguments, "-o", "net.ckpt.json"]) == 0
    return json.loads(Path("net.ckpt.json").read_text())


def checked(**more):
    return check("lockmodel:Net", "net.ckpt.json", device="cpu", **more)


def rules(report):
    return [found.rule for found in report.findings]


def test_a_model_locked_with_its_outputs(folder, capsys):
    held = lock("lockmodel:Net", "--inputs", "3x6")
    assert capsys.readouterr().out.splitlines()[1] == "outputs: 1 on synthetic values"
    assert held["ckptcompat_lock"] == 2
    assert held["behaviour"]["inputs"] == ["3x6"]
    assert os.stat("net.ckpt.json").st_size < 6_000  # noqa: PTH116
    report = checked()
    assert report.ok, str(report)
    assert report.promises[0].detail == "max |Δ| 0 in 1 output on synthetic values"
    assert checked(inputs=(3, 6)).promises[0].status == "kept"


def test_another_activation(folder):
    lock("lockmodel:Net", "--inputs", "3x6")
    today(NET.replace("F.relu(self.fc(self", "F.gelu(self.fc(self"))
    report = checked()
    assert rules(report) == ["function-changed"]
    assert "on synthetic values, output differs by" in report.errors[0].message


def test_growth_by_the_recipe(folder):
    lock("lockmodel:Net", "--inputs", "3x6")
    today(NET.replace("outputs=4", "outputs=14"))
    assert "shape-mismatch" in rules(checked())
    report = checked(recipe=GROW)
    assert report.ok, str(report)
    assert "old outputs kept" in report.promises[-1].detail
    today(NET.replace("outputs=4", "outputs=14").replace("F.relu(self.fc(self", "F.gelu(self.fc(self"))
    assert rules(checked(recipe=GROW)) == ["function-changed"]


def test_a_declared_change_of_a_key_that_the_model_renames(folder):
    lock("lockmodel:Net", "--inputs", "3x6")
    hook = """
    def _load_from_state_dict(self, state, prefix, *rest):
        for leaf in ("weight", "bias"):
            state[f"{prefix}head.{leaf}"] = state.pop(f"{prefix}out2.{leaf}")
        super()._load_from_state_dict(state, prefix, *rest)
"""
    today(NET.replace("out2", "head") + hook)
    report = checked(recipe=Recipe(scale("out2.weight", 0.5)))
    assert report.ok, str(report)
    assert report.promises[-1].status == "changed"


def test_other_inputs_are_not_compared(folder):
    lock("lockmodel:Net", "--inputs", "3x6")
    today(NET.replace("F.relu", "F.gelu"))
    report = checked(inputs=(2, 6))
    assert rules(report) == ["function-uncompared"]
    assert "its outputs were recorded for other inputs" in report.findings[0].message


def test_a_method_is_recorded(folder):
    held = lock("lockmodel:Net", "--inputs", "3x6", "--method", "encode")
    assert held["behaviour"]["outputs"][""]["shape"] == [3, 8]
    assert checked().ok
    assert rules(checked(inputs=(3, 6))) == ["function-uncompared"]
    assert checked(inputs=(3, 6), method="encode").promises[0].status == "kept"


def test_a_checkpoint_locked_with_a_model_and_metadata(folder, capsys):
    from lockmodel import Net

    held = {"state_dict": Net(5).state_dict(), "hyper_parameters": {"outputs": 5}, "epoch": 3}
    torch.save(held, "net.pth")
    found = lock(
        "net.pth", "--model", "lockmodel:Net", "--inputs", "3x6", "--model-args", "ckpt:hyper_parameters"
    )
    assert capsys.readouterr().out.splitlines()[1:] == [
        "metadata: hyper_parameters, epoch",
        "outputs: 1 on synthetic values",
    ]
    assert found["metadata"] == {"hyper_parameters": {"outputs": 5}, "epoch": 3}
    assert checked(model_args="ckpt:hyper_parameters").ok
    today(NET.replace("F.relu", "F.silu"))
    assert rules(checked(model_args="ckpt:hyper_parameters")) == ["function-changed"]
    assert "metadata" not in lock("net.pth", "--no-metadata")


def test_a_model_that_amplifies_rounding_errors_says_so(folder):
    text = NET.replace(
        "return self.out2(F.relu(self.fc(self",
        "return torch.sin(900 * self.out2(900 * torch.sin(self.fc(self",
    )
    today(text.replace("[:, self.order])))", "[:, self.order]))))"))
    lock("lockmodel:Net", "--inputs", "3x6")
    kept = checked().promises[0]
    assert kept.status == "kept"
    assert "times the usual: rounding errors grow" in kept.detail


def test_update_records_again(folder):
    lock("lockmodel:Net", "--inputs", "3x6")
    today(NET.replace("F.relu", "F.silu"))
    assert not checked().ok
    update("net.ckpt.json", DEFAULT)
    assert checked().ok
    from lockmodel import Net

    torch.save({"state_dict": Net().state_dict(), "epoch": 1}, "net.pth")
    lock("net.pth", "--model", "lockmodel:Net", "--inputs", "3x6")
    today(NET)
    torch.save({"state_dict": Net().state_dict(), "epoch": 2}, "net.pth")
    update("net.ckpt.json", DEFAULT)
    assert json.loads(Path("net.ckpt.json").read_text())["metadata"] == {"epoch": 2}
    assert checked().ok


def test_a_past_commit_is_locked_and_made_anew(folder):
    repository = Repository(folder)
    sha = repository.commit()
    today(NET.replace("outputs=4", "outputs=14"))
    repository.commit()
    held = lock("lockmodel:Net", "--at", "HEAD~1", "--inputs", "3x6")
    assert held["source"] == {"model": "lockmodel:Net", "at": "HEAD~1", "commit": sha}
    assert open_checkpoint("net.ckpt.json")["out2.weight"].shape == (4, 8)
    before = Path("net.ckpt.json").read_bytes()
    repository.commit()
    update("net.ckpt.json", DEFAULT)
    assert Path("net.ckpt.json").read_bytes() == before
    held = lock("git:HEAD~2#lockmodel:Net")
    assert held["source"] == {"model": "lockmodel:Net", "at": "HEAD~2", "commit": sha}


def test_integers_without_room_are_those_of_today(folder):
    held = lock_of_model(Question("lockmodel:Net", inputs=["3x6"], most=3), DEFAULT)
    write_lock("net.ckpt.json", held)
    assert held["behaviour"]["constructed"] == {"order": None}
    assert checked().ok


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["lockmodel:Net", "--model", "a:b"], "--model is for a checkpoint"),
        (["net.pth", "--at", "HEAD"], "--at is for a model"),
        (["net.pth", "--inputs", "3x6"], "--model and --inputs belong together"),
        (["net.pth", "--model", "lockmodel:Net"], "--model and --inputs belong together"),
        (["lockmodel:Net", "--model-args", "ckpt:a"], "reads a checkpoint"),
        (
            ["lockmodel:Net", "--inputs", "auto"],
            "does not declare its inputs; looked for example_input_array",
        ),
        (["lockmodel:Net", "--inputs", "3y6"], "'3y6'"),
        (["lockmodel:Net", "--at", "nonsense"], "git"),
        (["git:nonsense"], "git"),
        (["git:HEAD#lockmodel:Net", "--at", "HEAD~1"], "names its commit already"),
        (["other.pth", "--model", "lockmodel:Net", "--inputs", "3x6"], "does not fit lockmodel.Net"),
    ],
)
def test_bad_use_is_one_error_and_nothing_is_written(folder, capsys, arguments, told):
    torch.save({"a": torch.ones(2)}, "other.pth")
    assert main(["lock", *arguments, "-o", "net.ckpt.json"]) == 2
    assert told in capsys.readouterr().err
    assert not Path("net.ckpt.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": {"": {"shape": [1]}}},
        {"constructed": {"nothing": "x"}},
        {"constructed": {"order": 'not base 85 "'}},
        {"precision": 3},
        {"gain": 0},
        {"gain": "much"},
    ],
)
def test_a_damaged_record_is_one_finding(folder, change):
    held = lock("lockmodel:Net", "--inputs", "3x6")
    held["behaviour"] |= change
    Path("net.ckpt.json").write_text(json.dumps(held))
    report = checked()
    assert rules(report) == ["no-checkpoint"]
    assert "lock it again" in report.errors[0].message


def test_a_model_whose_outputs_are_random_is_told(folder, capsys):
    today(NET.replace("return self.out2(", "return torch.rand(1) * self.out2("))
    lock("lockmodel:Net", "--inputs", "3x6")
    assert "outputs: none to compare with, two runs of the model differ" in capsys.readouterr().out
    assert rules(checked()) == ["function-uncompared"]
