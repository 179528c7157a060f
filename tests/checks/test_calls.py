"""How the model is called: with which arguments it is built, which method runs, on what, in how much memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_ckptcompat import check
from pytest_ckptcompat.cli.command import main


class Net(nn.Module):
    def __init__(self, width: int, depth: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self(x).sum(1)  # calls the model as such, too


@pytest.fixture
def path(tmp_path):
    held = {"state_dict": Net(4, 2).state_dict(), "hyper_parameters": {"width": 4, "depth": 2}, "epoch": 3}
    torch.save(held, tmp_path / "net.pth")
    return str(tmp_path / "net.pth")


def stages(report):
    return {stage.name: stage for stage in report.stages}


@pytest.mark.parametrize("arguments", [{"width": 4, "depth": 2}, "ckpt:hyper_parameters"])
def test_arguments_of_the_model(path, arguments):
    report = check(Net, path, model_args=arguments)
    assert report.ok, str(report)
    assert "4 of 4 keys match" in report.verdict


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"widht": 4}, "does not take 'widht' of model_args: did you mean 'width'?"),
        ("ckpt:hyper", "model_args='ckpt:hyper'"),
        ("ckpt:epoch", "is not a dict whose keys are names of arguments"),
        ({}, "missing 1 required positional argument"),
    ],
)
def test_arguments_that_do_not_do(path, arguments, told):
    report = check(Net, path, model_args=arguments)
    assert [found.rule for found in report.errors] == ["model-error"]
    assert told in report.errors[0].message


def test_a_method_is_called(path):
    report = check(Net, path, model_args={"width": 4, "depth": 2}, method="encode", inputs=(3, 4))
    assert report.ok, str(report)
    assert stages(report)["forward"].detail == "on cpu: (3,)"
    assert "(3,)" in stages(report)["forward-cuda"].detail


def test_a_method_of_both_models_is_compared(path):
    report = check(
        Net, path, model_args={"width": 4, "depth": 2}, method="encode", inputs=(3, 4), source_model=lambda: Net(4, 2)
    )  # fmt: skip
    assert {each.name: each.status for each in report.promises}["function kept"] == "kept"


def test_a_method_that_is_not_there(path):
    report = check(Net, path, model_args={"width": 4, "depth": 2}, method="infer", inputs=(3, 4))
    assert [found.rule for found in report.errors] == ["model-error"]
    assert "has no method 'infer'" in report.errors[0].message


class Knowing(Net):
    def __init__(self) -> None:
        super().__init__(4, 2)
        self.example_input_array = torch.zeros(5, 4)


def test_inputs_that_the_model_knows(path):
    report = check(Knowing, path, inputs="auto")
    assert stages(report)["forward"].detail == "on cpu: (5, 4)"
    assert stages(check(Knowing, path))["forward"].detail == (
        "no inputs declared; the model knows some: inputs='auto'"
    )


def test_inputs_that_the_model_does_not_know(path):
    report = check(Net, path, model_args={"width": 4, "depth": 2}, inputs="auto")
    assert [found.rule for found in report.errors] == ["forward-error"]
    assert "looked for example_input_array (Lightning)" in report.errors[0].message


@pytest.mark.parametrize(
    ("most", "device", "ok", "told"),
    [
        ("1GB", "auto", True, "peak "),
        ("100B", "auto", False, "peak "),
        ("100B", "rehearse", False, "peak "),
        ("100B", "cpu", True, "max_memory is for CUDA, and was not judged"),
    ],
)
def test_a_limit_of_memory(path, most, device, ok, told):
    report = check(Knowing, path, inputs="auto", max_memory=most, device=device)
    assert report.ok == ok, str(report)
    assert any(told in stage.detail for stage in report.stages)
    if not ok:
        assert [found.rule for found in report.errors] == ["forward-memory"]
        assert "the forward pass needs" in report.errors[0].message


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--model-arg", "width=4", "--model-arg", "depth=2"], 0),
        (["--model-args", "", "--model-arg", "width=4", "--model-arg", "depth=2"], 0),  # an unset variable
        (["--model-args", "ckpt:hyper_parameters", "--method", "encode", "--inputs", "3x4"], 0),
        (["--model-args", "ckpt:hyper_parameters", "--model-arg", "width=4"], 2),
        (["--model-arg", "width"], 2),
        (["--model-arg", "width=four"], 2),
        (["--model-args", "ckpt:hyper_parameters", "--inputs", "3x4", "--max-memory", "10B"], 1),
    ],
)
def test_the_command_takes_them(path, arguments, code, monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    assert main(["check", path, "test_calls:Net", *arguments]) == code
