"""``ckptcompat bisect`` over the history of a small repository."""

from __future__ import annotations

import sys

import pytest
import torch
from repositories import Repository

from pytest_ckptcompat.cli.command import main

NET = """
from torch import nn
# {note}
def make():
    return nn.Linear(3, {outputs})
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    made = Repository(tmp_path / "repo")
    monkeypatch.chdir(made.folder)
    monkeypatch.setattr(sys, "path", [str(made.folder), *sys.path])
    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "net.pth")
    return made


def test_the_right_commit_of_many_is_named(repository, capsys):
    shas = []
    for number in range(13):
        text = NET.format(note=number, outputs=4 if number < 8 else 14)
        broken = number in (2, 6, 9, 10)
        shas.append(repository.commit(bisected="raise ValueError('half done')" if broken else text))
    state = repository.state()
    assert main(["bisect", "../net.pth", "bisected:make", "--good", shas[0]]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        f"the first commit at which ../net.pth no longer fits bisected:make:\n    {shas[8][:10]} "
    )
    assert "\n../net.pth does not fit bisected.make: 2 mismatched" in out
    assert "commits tried" in out
    assert repository.state() == state


def test_without_a_good_commit_and_with_one_that_can_not_tell(repository, capsys):
    repository.commit(bisected=NET.format(note=0, outputs=4))
    broken = repository.commit(bisected="raise ValueError('half done')")
    last = repository.commit(bisected=NET.format(note=2, outputs=14))
    assert main(["bisect", "../net.pth", "bisected:make"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "one of these is the first commit at which ../net.pth no longer fits bisected:make; the others"
    )
    assert last[:10] in out
    assert broken[:10] in out
    assert "1 could not be imported and were skipped (the last, " in out
    assert "ValueError: half done" in out


def test_it_fits_everywhere_or_nowhere(repository, capsys):
    repository.commit(bisected=NET.format(note=0, outputs=4))
    assert main(["bisect", "../net.pth", "bisected:make"]) == 1
    assert capsys.readouterr().out.startswith("it fits at HEAD\n")
    repository.commit(bisected=NET.format(note=0, outputs=5))
    assert main(["bisect", "../net.pth", "bisected:make", "--good", "HEAD"]) == 1
    assert capsys.readouterr().out.startswith("it does not fit at HEAD either\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing.pth", "bisected:make"], "nothing.pth does not exist"),
        (["../net.pth", "bisected:make", "--good", "nonsense"], "git finds no commit 'nonsense'"),
        (["../net.pth", "bisected:make", "--bad", "HEAD~7"], "git finds no commit 'HEAD~7'"),
        (["../net.pth", "bisected:make", "--good", "side"], "side is not among the first parents of HEAD"),
    ],
)
def test_bad_use(repository, capsys, arguments, told):
    repository.commit(bisected=NET.format(note=0, outputs=4))
    repository.git("checkout", "-q", "-b", "side")
    repository.commit(a="1")
    repository.git("checkout", "-q", "main")
    assert main(["bisect", *arguments]) == 2
    assert told in capsys.readouterr().err
