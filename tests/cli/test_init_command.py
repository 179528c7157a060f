from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
import torch
from repositories import Repository

from pytest_ckptcompat.cli.command import main

NET = """
import torch
from torch import nn
class Net(nn.Linear):
    def __init__(self, outputs=4):
        super().__init__(3, outputs)
        self.example_input_array = torch.zeros(2, 3)
def plain():
    return nn.Linear(3, 4)
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    made = Repository(tmp_path / "repo")
    made.put(".gitignore", "__pycache__\n.pytest_cache\n")
    made.write(initmodel=NET)
    monkeypatch.chdir(made.folder)
    monkeypatch.setattr(sys, "path", [str(made.folder), *sys.path])
    yield made
    sys.modules.pop("initmodel", None)


def table():
    (check,) = tomllib.loads(Path("ckptcompat.toml").read_text())["check"]
    return check


def test_against_the_default_branch(repository, capsys):
    repository.commit()
    assert main(["init", "initmodel:Net"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("wrote ckptcompat.toml\n")
    assert "function kept" in out
    assert "fetch-depth: 0" in out
    assert table() == {"name": "net", "ckpt": "git:main...", "model": "initmodel:Net", "inputs": "auto"}
    before = Path("ckptcompat.toml").read_bytes()
    assert main(["init", "initmodel:Net"]) == 2
    assert "ckptcompat.toml is there already, and is not overwritten" in capsys.readouterr().err
    assert Path("ckptcompat.toml").read_bytes() == before


def test_with_a_checkpoint(repository, capsys):
    torch.save(torch.nn.Linear(3, 4).state_dict(), "net-v1.pth")
    assert main(["init", "initmodel:plain", "net-v1.pth"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("wrote net-v1.ckpt.json and ckptcompat.toml\n")
    assert "the model does not declare its inputs: declare them" in out
    assert table() == {"name": "plain", "ckpt": "net-v1.ckpt.json", "model": "initmodel:plain"}


def test_a_checkpoint_that_does_not_fit(repository, capsys):
    torch.save(torch.nn.Linear(3, 14).state_dict(), "net.pth")
    assert main(["init", "initmodel:plain", "net.pth"]) == 1
    assert "shape-mismatch" in capsys.readouterr().out
    assert Path("ckptcompat.toml").exists()
    assert Path("net.ckpt.json").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["initmodel:Nett"], "has no 'Nett'"),
        (["initmodel:Net", "nothing.pth"], "nothing.pth does not exist"),
        (["initmodel:Net"], "there is no branch origin/main, origin/master, main or master"),
    ],
)
def test_what_can_not_be_written(repository, capsys, arguments, told):
    assert main(["init", *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not Path("ckptcompat.toml").exists()


def test_the_branch_of_the_remote(repository, tmp_path, capsys, monkeypatch):
    repository.commit()
    repository.git("branch", "-m", "trunk")
    repository.git("clone", "-q", str(repository.folder), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "clone"), *sys.path[1:]])
    assert main(["init", "initmodel:plain"]) == 0
    assert table()["ckpt"] == "git:origin/trunk..."
