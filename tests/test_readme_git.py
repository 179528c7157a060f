"""The README's opening: what is printed when a head changes, when an activation changes, when nothing does."""

from __future__ import annotations

import shutil
import sys

import pytest
from readme import ROOT, block, commands, normal
from repositories import Repository

from pytest_ckptcompat import check


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    made = Repository(tmp_path_factory.mktemp("readme") / "onet")
    shutil.copy(ROOT / "examples/onet/onet.py", made.folder)
    made.put(".gitignore", ".pytest_cache\n__pycache__\n")
    made.commit()
    made.git("update-ref", "refs/remotes/origin/main", "HEAD")
    return made


@pytest.fixture
def reported(repository, monkeypatch):
    def report(before="", after=""):
        path = repository.folder / "onet.py"
        text = (ROOT / "examples/onet/onet.py").read_text(encoding="utf-8")
        assert before in text
        path.write_text(text.replace(before, after) if before else text, encoding="utf-8")
        monkeypatch.delitem(sys.modules, "onet", raising=False)
        return f"{check('onet:Net', 'git:origin/main', inputs=(2, 3, 48, 48), device='cpu')}\n"

    monkeypatch.chdir(repository.folder)
    monkeypatch.setattr(sys, "path", [str(repository.folder), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield report
    sys.modules.pop("onet", None)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("a head changed", "outputs = 14", "outputs = 20"),
        ("an activation changed", "torch.sigmoid(self.out1(x))", "torch.tanh(self.out1(x))"),
        ("nothing changed", "", ""),
    ],
)
def test_what_is_printed(reported, name, before, after):
    shown = {
        "a head changed": block("git: a head changed"),
        "an activation changed": block("git: an activation changed"),
        "nothing changed": block("git: nothing changed"),
    }[name]
    assert normal(reported(before, after)).startswith(normal(shown).rstrip())


def test_the_commands_are_those_of_the_project():
    install, gate, init = commands(block("git: the gate"))
    assert install == "pip install pytest-ckptcompat"
    assert gate.split("#")[0].split() == ["pytest", "--ckpt", "git:origin/main"]
    assert init.split("#")[0].split() == ["ckptcompat", "init", "onet:Net"]
