"""A pull request gated against a commit: no file, no weights, only the repository."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch
from repositories import Repository

from pytest_ckptcompat import Recipe, allow, open_checkpoint, scale, tile
from pytest_ckptcompat.checks import behaviour_stage
from pytest_ckptcompat.checks.arguments import CheckArguments
from pytest_ckptcompat.checks.check import Check
from pytest_ckptcompat.checks.past_checkpoint import Place, behaviour_at
from pytest_ckptcompat.core.limits import Limits

NET = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, outputs=4):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.fc = nn.Linear(8, 6)
        self.out2 = nn.Linear(6, outputs)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x[:, self.order])))
        x = self.fc(x.mean((2, 3)))
        return {"size": x.float().norm(dim=1), "boxes": self.out2(x)}
"""


class Odd(torch.Tensor):
    """A tensor of a class that another process does not know."""


GROW = Recipe(tile("out2.*", dim=0))


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    made = Repository(tmp_path_factory.mktemp("gate") / "repo")
    made.put(".gitignore", ".pytest_cache\n__pycache__\n")
    made.commit(model=NET)
    cache = made.folder / ".pytest_cache"
    cache.mkdir()
    (cache / "kept").write_text("")  # git does not tell of empty folders
    return made


@pytest.fixture
def today(repository, monkeypatch):
    """Put today's model into the working tree, and check it against HEAD."""
    monkeypatch.chdir(repository.folder)
    monkeypatch.setattr(sys, "path", [str(repository.folder), *sys.path])

    def checked(*changes, **arguments):
        text = NET
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        repository.write(model=text)
        monkeypatch.delitem(sys.modules, "model", raising=False)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        state = repository.state()
        arguments = {"inputs": (2, 3, 8, 8), "device": "cpu"} | arguments
        path, place = arguments.pop("ckpt", "git:HEAD"), arguments.pop("place", Place())
        declared = CheckArguments.of(model="model:Net", **arguments)
        report = Check(declared, path, lambda key: open_checkpoint(path, key), place=place).run()
        monkeypatch.delitem(sys.modules, "model", raising=False)
        assert repository.state() == state
        return report

    yield checked
    repository.write(model=NET)


def stages(report):
    return {stage.name: (stage.status, stage.detail) for stage in report.stages}


def rules(report):
    return [found.rule for found in report.findings]


def test_nothing_changed(today):
    report = today()
    assert report.ok, str(report)
    assert report.verdict == "git:HEAD fits model.Net: 12 of 12 keys match"
    assert [(each.name, each.status) for each in report.promises] == [("function kept", "kept")]
    assert report.promises[0].detail == "max |Δ| 0 in 2 outputs on synthetic values"
    assert stages(report)["open"][1].startswith("git, 12 tensors")
    assert stages(report)["verify"] == ("passed", "function kept")
    assert stages(report)["forward"] == ("skipped", "a commit has no values")


def test_a_head_that_changed(today):
    report = today(("outputs=4", "outputs=14"))
    assert rules(report) == ["shape-mismatch", "shape-mismatch"]
    assert report.suggestion == GROW
    assert report.mismatched == [("out2.weight", (4, 6), (14, 6)), ("out2.bias", (4,), (14,))]


def test_growth_by_the_recipe(today):
    report = today(("outputs=4", "outputs=14"), recipe=GROW)
    assert report.ok, str(report)
    kept = {each.name: each for each in report.promises}["function kept"]
    assert kept.status == "kept"
    assert kept.detail.startswith("old outputs kept: max |Δ| ")
    assert stages(report)["verify"][1].startswith("function kept; a commit has no values: ")


def test_a_recipe_for_older_checkpoints_is_left_out(today):
    waiver = allow("unexpected-key", "aux.*", reason="an older file has them")
    report = today(
        recipe=GROW, source_model="nothing:AtAll", state_dict_key="x.y", allow=waiver, optimizer=print
    )
    assert report.ok, str(report)
    assert rules(report) == []
    assert stages(report)["recipe"] == (
        "skipped", "not needed: what the model saved at that commit loads as it is",
    )  # fmt: skip
    assert "with the recipe" not in report.verdict


@pytest.mark.parametrize(
    "change",
    [
        ("F.relu", "F.leaky_relu"),
        ("nn.BatchNorm2d(8)", "nn.BatchNorm2d(8, eps=1e-4)"),
        ("x.mean((2, 3))", "x.amax((2, 3))"),
        ("torch.tensor([2, 0, 1])", "torch.tensor([2, 1, 0])"),
        ("nn.Conv2d(3, 8, 3)", "nn.Conv2d(3, 8, 3, dilation=2)"),
    ],
)
def test_what_the_model_computes(today, change):
    report = today(change)
    if "tensor([" in change[0]:  # it is saved, so the old values are loaded
        assert report.ok, str(report)
        return
    assert rules(report) == ["function-changed"]
    assert report.errors[0].message.startswith("on synthetic values, output[")
    assert report.promises[0].status == "broken"
    assert stages(report)["verify"][0] == "failed"


def test_a_step_that_declares_a_change_is_told_with_its_size(today):
    declared = Recipe(tile("out2.*", dim=0), scale("fc.weight", 0.5))
    report = today(("outputs=4", "outputs=14"), recipe=declared)
    assert report.ok, str(report)
    kept = {each.name: each for each in report.promises}["function kept"]
    assert kept.status == "changed"
    assert "differs by" in kept.detail
    report = today(
        ("outputs=4", "outputs=14"), ('"boxes"', '"other": x[:, :3].sum(1) * 2, "boxes"'), recipe=declared
    )
    assert report.ok, str(report)


def test_a_declared_change_excuses_only_what_it_reaches(today):
    declared = Recipe(tile("out2.*", dim=0), scale("out2.weight", 0.5))
    report = today(("outputs=4", "outputs=14"), ("norm(dim=1)", "norm(p=1, dim=1)"), recipe=declared)
    assert rules(report) == ["function-changed"]
    assert "output['size']" in report.errors[0].message


def test_headers_alone(today):
    for device in ("none", "rehearse"):
        report = today(("F.relu", "F.silu"), device=device)
        assert report.ok, str(report)
        assert stages(report)["verify"] == ("skipped", "a commit has no values")


def test_without_inputs(today):
    report = today(("F.relu", "F.silu"), inputs=None)
    assert report.ok, str(report)
    assert rules(report) == []


def test_inputs_by_a_callable_are_given_to_both(today):
    def batch():
        return {"x": torch.rand(2, 3, 8, 8)}

    assert today(inputs=batch).ok
    assert rules(today(("F.relu", "F.silu"), inputs=batch)) == ["function-changed"]


def test_inputs_that_can_not_be_given_to_another_process(today):
    report = today(inputs=lambda: {"x": torch.zeros(2, 3, 8, 8).as_subclass(Odd)})
    assert report.ok, str(report)
    assert rules(report) == ["function-uncompared"]
    assert (
        "the inputs hold a tensor of type Odd, which can't be given to another process"
        in report.findings[0].message
    )


def test_arguments_of_the_model_that_can_not_be_given_to_another_process(today):
    @dataclass
    class Outputs:
        count: int = 4

    report = today(("outputs=4", "outputs=None"), ("6, outputs", "6, 4"), model_args={"outputs": Outputs()})
    assert rules(report) == ["no-checkpoint"]
    assert "model_args= holds what another process can't be given" in str(report)


def test_a_forward_pass_that_raises_now(today):
    report = today(("x.mean((2, 3))", "x.mean((2, 7))"), device="auto")
    assert rules(report) == ["function-changed", "forward-error"]
    assert "it gave 2 outputs then, and now the model does not run: IndexError" in report.errors[0].message


def test_randomness_is_told_and_not_judged(today):
    report = today(("self.fc(x.mean((2, 3)))", "F.dropout(self.fc(x.mean((2, 3))))"))
    assert report.ok, str(report)
    assert rules(report) == ["function-uncompared"]
    assert "two runs of the model differ" in report.findings[0].message


def test_an_output_that_is_gone_is_told(today):
    report = today(('{"size": x.float().norm(dim=1), "boxes": self.out2(x)}', "self.out2(x)"))
    assert report.ok, str(report)
    assert rules(report) == ["function-uncompared"]
    assert "output['size'] (2,) is gone" in report.findings[0].message


def test_values_that_are_too_large(today):
    report = today(place=Place(limits=Limits(synthetic_bytes=1000)))
    assert rules(report) == ["function-uncompared"]
    assert "its values take 2.7 kB in float64, the limit is 1.0 kB" in report.findings[0].message


@pytest.mark.parametrize("ckpt", ["git:nonsense", "git:", "git:HEAD#other:Net"])
def test_what_can_not_be_had_is_one_finding(today, ckpt):
    report = today(ckpt=ckpt)
    assert rules(report) == ["no-checkpoint"]
    assert report.verdict.startswith(f"{ckpt} was not checked: ")


def saved(folder):
    torch.manual_seed(0)
    held = {
        "conv.weight": torch.randn(8, 3, 3, 3), "conv.bias": torch.randn(8), "norm.weight": torch.ones(8),
        "norm.bias": torch.zeros(8), "norm.running_mean": torch.zeros(8), "norm.running_var": torch.ones(8),
        "norm.num_batches_tracked": torch.tensor(3), "order": torch.tensor([2, 0, 1]),
        "fc.weight": torch.randn(6, 8), "fc.bias": torch.randn(6), "out2.weight": torch.randn(4, 6), "out2.bias": torch.randn(4),
    }  # fmt: skip
    torch.save(held, folder / "net.pth")


def test_a_source_model_of_a_commit(today, tmp_path, monkeypatch):
    saved(tmp_path)
    answers = {}  # the commit is asked once for all of today's models

    def asked_once(path, *rest):
        if path not in answers:
            answers[path] = behaviour_at(path, *rest)
        return answers[path]

    monkeypatch.setattr(behaviour_stage, "behaviour_at", asked_once)
    path, source = str(tmp_path / "net.pth"), {"source_model": "git:HEAD"}
    report = today(("outputs=4", "outputs=14"), ckpt=path, recipe=GROW, **source)
    assert report.ok, str(report)
    kept = {each.name: each for each in report.promises}["function kept"]
    assert kept.status == "kept"
    assert kept.detail.endswith("in 2 outputs on the checkpoint's values")
    report = today(("outputs=4", "outputs=14"), ("F.relu", "F.silu"), ckpt=path, recipe=GROW, **source)
    assert rules(report) == ["function-changed"]
    assert stages(report)["verify"][0] == "failed"
    report = today(ckpt=path, source_model="git:nonsense")
    assert rules(report) == ["source-model-error"]
