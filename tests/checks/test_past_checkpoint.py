"""``git:REF`` as a checkpoint, from repositories as people have them."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from repositories import Repository

from pytest_ckptcompat import open_checkpoint
from pytest_ckptcompat.checks.past_checkpoint import Place, Question, behaviour_at, lock_at, open_past
from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.forward.inputs import Inputs

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, outputs=4):
        super().__init__()
        self.fc = nn.Linear(3, outputs)
        self.register_buffer("index", torch.arange(5))

    def forward(self, x):
        return self.fc(x)
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    made = Repository(tmp_path / "repo")
    monkeypatch.chdir(made.folder)
    monkeypatch.setattr(sys, "path", [str(made.folder), *sys.path])
    return made


def opened(path, model="model:Net", **more):
    return open_past(path, Question(model, **more), Place(keeps=False))


def test_the_table_of_a_past_commit(repository):
    repository.commit(model=NET)
    repository.commit(model=NET.replace("outputs=4", "outputs=14"))
    repository.write(model="raise ValueError('half written')")
    state = repository.state()
    ckpt = opened("git:HEAD~1")
    assert {key: spec.shape for key, spec in ckpt.items()} == {
        "fc.weight": (4, 3), "fc.bias": (4,), "index": (5,),
    }  # fmt: skip
    assert (ckpt.name, ckpt.format, ckpt["index"].dtype) == ("git:HEAD~1", "git", "int64")
    assert opened("git:HEAD", model_args={"outputs": 7})["fc.weight"].shape == (7, 3)
    assert repository.state() == state


def test_behaviour_on_the_values_of_a_checkpoint(repository, tmp_path):
    repository.commit(model=NET)
    state = {"fc.weight": torch.ones(4, 3), "fc.bias": torch.arange(4.0), "index": torch.arange(5)}
    torch.save({"state_dict": state}, tmp_path / "net.pth")
    question = Question("model:Net", batch=Inputs.parse((1, 3)).plain())
    ckpt = open_checkpoint(tmp_path / "net.pth")
    entries = behaviour_at("git:HEAD", question, ckpt, Place())["outputs"][""]["entries"]
    assert [each - entries[0] for each in entries] == pytest.approx([0, 1, 2, 3])
    torch.save({"other": torch.ones(1)}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="does not load the old checkpoint"):
        behaviour_at("git:HEAD", question, open_checkpoint(tmp_path / "net.pth"), Place())


@pytest.mark.parametrize(
    ("files", "model", "told"),
    [
        ({"model": "X = 1"}, "model:Net", "module 'model' has no 'Net'"),
        ({"other": "X = 1"}, "model:Net", "there is no module 'model'"),
        (
            {"model": "raise ValueError('bad')"},
            "model:Net",
            r"importing model failed: ValueError: bad \(model.py:1\)",
        ),
        ({"model": "import sys; sys.exit(3)"}, "model:Net", r"SystemExit: the code called sys.exit\(3\)"),
        ({"model": "def Net(): raise KeyError('x')"}, "model:Net", r"KeyError: 'x' \(model.py:1\)"),
        ({"model": "def Net(): return 3"}, "model:Net", "gave int, not an nn.Module"),
        ({"model": "from . import compiled"}, "model:Net", "importing model failed: ImportError"),
        ({"model": "import time; time.sleep(60)"}, "model:Net", "did not finish within 3 s"),
        ({"model": "import os; os._exit(9)"}, "model:Net", "ended with exit code 9"),
    ],
)
def test_a_model_that_can_not_be_had_at_the_commit(repository, files, model, told):
    sha = repository.commit(**files)
    place = Place(timeout=3.0 if "finish" in told else 60.0)
    with pytest.raises(CheckpointError, match=rf"^git:HEAD: {model} at commit {sha[:10]}: .*{told}"):
        open_past("git:HEAD", Question(model), place)


@pytest.mark.parametrize("model", [lambda: None, torch.nn.Linear(2, 2), type("Local", (), {})])
def test_a_model_that_can_not_be_named(repository, model):
    repository.commit(model=NET)
    with pytest.raises(CheckpointError, match=r"write git:HEAD#package\.module:name"):
        opened("git:HEAD", model)


def test_another_model_is_named(repository):
    repository.commit(old=NET, model="X = 1")
    repository.commit(model=NET)
    assert opened("git:HEAD~1#old:Net", lambda: None)["fc.bias"].shape == (4,)


def test_arguments_that_the_past_model_does_not_take(repository):
    repository.commit(model=NET)
    with pytest.raises(CheckpointError, match=r"does not take 'width' of model_args: it takes outputs"):
        opened("git:HEAD", model_args={"width": 3})


def test_what_a_checkout_would_have_is_told(repository, tmp_path):
    third = Repository(tmp_path / "third")
    third.commit(part="X = 1")
    repository.git("submodule", "add", "-q", str(third.folder), "third")
    repository.commit(model="from third import part\n" + NET)
    with pytest.raises(CheckpointError, match=r"of this commit, 1 submodule is absent \(third\)"):
        opened("git:HEAD")


def test_an_answer_is_kept_for_the_commit_and_the_question(repository, tmp_path, monkeypatch):
    repository.commit(model=NET)
    place = Place(cache=tmp_path / "cache")
    batch = Inputs.parse((2, 3)).plain()
    one = lock_at("git:main", Question("model:Net", batch=batch), place)
    assert one["behaviour"]["outputs"][""]["shape"] == [2, 4]
    assert list(one["behaviour"]["constructed"]) == ["index"]
    monkeypatch.setattr(sys, "executable", os.devnull)  # from now on, no child can be started
    assert lock_at("git:HEAD", Question("model:Net", batch=batch), place) == one
    with pytest.raises((CheckpointError, OSError)):
        lock_at("git:HEAD", Question("model:Net", {"outputs": 5}), place)
