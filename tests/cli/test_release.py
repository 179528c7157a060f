"""``ckptcompat release``: the last of the releases is what today's model saves."""

from __future__ import annotations

import json
import sys
from importlib import import_module, invalidate_caches
from typing import TYPE_CHECKING

import pytest

from pytest_ckptcompat import Recipe, Releases
from pytest_ckptcompat.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.head = nn.Linear(8, {outputs})

    def forward(self, x):
        return self.head(self.body(x))
"""

CHECK = '[[check]]\nname = "net"\nreleases = "releases.toml"\nmodel = "drifting:Net"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    grown(tmp_path, 4)
    yield tmp_path
    sys.modules.pop("drifting", None)


def grown(folder: Path, outputs: int, text: str = NET) -> None:
    (folder / "drifting.py").write_text(text.replace("{outputs}", str(outputs)))
    sys.modules.pop("drifting", None)
    invalidate_caches()
    import_module("drifting")


def test_the_first_release_makes_the_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", "v1", "drifting:Net", "--inputs", "2x6"]) == 0
    assert (folder / "releases.toml").read_text() == (
        '[[release]]\nname = "v1"\nlock = "locks/v1.ckpt.json"\n'
    )
    assert json.loads((folder / "locks" / "v1.ckpt.json").read_text())["behaviour"]["outputs"]
    assert capsys.readouterr().out == (
        "releases.toml: release v1, with locks/v1.ckpt.json (4 keys)\noutputs: 1 on synthetic values\n"
    )


def test_a_release_after_a_change_drafts_the_recipe_of_the_one_before(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["release", "v1", "drifting:Net"]) == 0
    file = folder / "releases.toml"
    file.write_text("# every box ever drawn\n" + file.read_text())
    grown(folder, 10)
    assert main(["release", "v2", "drifting:Net"]) == 0
    assert file.read_text() == (
        "# every box ever drawn\n"
        '[[release]]\nname = "v1"\nlock = "locks/v1.ckpt.json"\n'
        '  [[release.recipe]]\n  op = "tile"\n  key = "head.*"\n  dim = 0\n'
        '\n[[release]]\nname = "v2"\nlock = "locks/v2.ckpt.json"\n'
    )
    loaded = Recipe.load(file)
    assert isinstance(loaded, Releases)
    assert [release.name for release in loaded.releases] == ["v1", "v2"]
    assert (
        'the recipe of v1 gives v2, on shapes: read it before you commit\n    Recipe(tile("head.*", dim=0))'
        in (capsys.readouterr().out)
    )


def test_a_change_that_nothing_explains_leaves_the_recipe_empty(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["release", "v1", "drifting:Net"]) == 0
    grown(folder, 4, NET.replace("self.body = nn", "self.extra = nn.Conv2d(3, 5, 7)\n        self.body = nn"))
    assert main(["release", "v2", "drifting:Net"]) == 0
    assert "release.recipe" not in (folder / "releases.toml").read_text()
    assert "the recipe of v1 is still empty, because none was found" in capsys.readouterr().out


def test_drift_is_red_and_a_release_makes_it_green(
    folder: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "ckptcompat.toml").write_text(CHECK)
    assert main(["release", "v1", "drifting:Net"]) == 0
    pytester.runpytest_inprocess(str(folder), "--rootdir", str(folder)).assert_outcomes(passed=2)
    grown(folder, 10)
    pytester.runpytest_inprocess(str(folder), "--rootdir", str(folder)).assert_outcomes(failed=2)
    assert main(["release", "v2", "drifting:Net"]) == 0
    pytester.runpytest_inprocess(str(folder), "--rootdir", str(folder)).assert_outcomes(passed=3)


def untouched(folder: Path) -> list[tuple[str, bytes]]:
    return sorted((str(path), path.read_bytes()) for path in folder.rglob("*.[tj]*") if path.is_file())


@pytest.mark.parametrize(
    ("name", "outputs", "code", "said"),
    [
        ("v2", 4, 1, "drifting:Net saves what the last release has, v1: nothing to release"),
        ("v1", 10, 1, "releases.toml has a release v1 already"),
        ("today", 10, 2, "'today' is not a name of a release"),
        ("v 2", 10, 2, "'v 2' is not a name of a release"),
        ("../v2", 10, 2, "'../v2' is not a name of a release"),
    ],
)
def test_what_is_not_due_or_not_right_changes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, outputs: int, code: int, said: str
) -> None:
    assert main(["release", "v1", "drifting:Net"]) == 0
    before = untouched(folder)
    grown(folder, outputs)
    assert main(["release", name, "drifting:Net"]) == code
    assert said in capsys.readouterr().err
    assert untouched(folder) == before


def test_a_model_of_an_older_release_can_t_be_one_of_its_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, outputs in (("v1", 4), ("v2", 10)):
        grown(folder, outputs)
        assert main(["release", name, "drifting:Net"]) == 0
    grown(folder, 4)
    assert main(["release", "v3", "drifting:Net"]) == 2
    assert (
        "what release v1 has, which is not the last: two releases with one header" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[recipe]]\nop = 'tile'\nkey = 'a'\ndim = 0\n", "is a recipe file, not a releases file"),
        (
            "release = [{name = 'v1', lock = 'locks/v1.ckpt.json'}]\n",
            "nothing can be added to the releases file",
        ),
        ("[[release]\n", "the recipe file is not valid TOML"),
    ],
)
def test_a_file_that_is_not_one_is_left_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    assert main(["release", "v1", "drifting:Net"]) == 0
    (folder / "releases.toml").write_text(text)
    before = untouched(folder)
    grown(folder, 10)
    assert main(["release", "v2", "drifting:Net"]) == 2
    assert said in capsys.readouterr().err
    assert untouched(folder) == before


@pytest.mark.parametrize("text", ["", "# every box ever drawn\n"])
def test_a_file_without_a_release_is_begun(folder: Path, text: str) -> None:
    (folder / "releases.toml").write_text(text)
    assert main(["release", "v1", "drifting:Net"]) == 0
    assert (folder / "releases.toml").read_text().startswith(text)
    assert isinstance(Recipe.load("releases.toml"), Releases)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (lambda locks: (locks / "v1.ckpt.json").write_text("{}"), "locks/v1.ckpt.json is there already"),
        (lambda locks: (locks / "v1.ckpt.json").mkdir(), "locks/v1.ckpt.json is there already"),
        (lambda locks: (locks / "v1.ckpt.json").symlink_to("nowhere"), "locks/v1.ckpt.json is there already"),
        (lambda locks: (locks.rmdir(), locks.write_text("")), "locks/v1.ckpt.json can't be written"),
    ],
)
def test_what_stands_in_the_place_of_the_lock_stays(
    folder: Path, capsys: pytest.CaptureFixture[str], there: Callable[[Path], object], said: str
) -> None:
    (folder / "locks").mkdir()
    there(folder / "locks")
    assert main(["release", "v1", "drifting:Net"]) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "releases.toml").exists()


def test_a_release_made_meanwhile_is_not_lost(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its model is built between the reading and the writing of the file; another one is released then."""
    other = "from pathlib import Path\nPath('releases.toml').write_text('# another')\n"
    (folder / "meanwhile.py").write_text(other + NET.replace("{outputs}", "4"))
    assert main(["release", "v1", "meanwhile:Net"]) == 2
    assert "releases.toml was changed meanwhile: run it again" in capsys.readouterr().err
    assert (folder / "releases.toml").read_text() == "# another"


@pytest.mark.parametrize(
    ("model", "said"), [("drifting:Nett", "Nett"), ("torch.nn:ReLU", "has no parameters and no buffers")]
)
def test_a_model_that_is_not_one(
    folder: Path, capsys: pytest.CaptureFixture[str], model: str, said: str
) -> None:
    assert main(["release", "v1", model]) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "locks").exists()
