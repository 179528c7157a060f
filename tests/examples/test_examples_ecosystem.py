"""The examples for other people's libraries: run as their users run them, and broken as those would break them.

Where a library is missing, its example is skipped, and says so.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch
from readme import ROOT

if TYPE_CHECKING:
    from pathlib import Path


class Broken(NamedTuple):
    """A change of one file, and what the report says of it."""

    file: str
    old: str
    new: str
    said: str


EXAMPLES = {
    "lightning": (
        2,
        Broken("test_digits.py", 'recipe=Recipe(tile("head.*", dim=0)),', "", "*head.weight*(10, 16) f32*(12, 16) f32*"),
    ),
    "transformers": (
        1,
        Broken("tiny-llama/config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 3', "*missing-key*model.layers.2.mlp.down_proj.weight*(32, 48) f32*"),
    ),
    "timm": (
        1,
        Broken("test_filter.py", 'touches=["pos_embed"]', 'touches=["head.*"]', "*pos_embed*the function changes it, and touches=*does not name it*"),
    ),
    "hub": (
        1,
        Broken("hubconf.py", "nn.Linear(8, 16)", "nn.Linear(8, 16, bias=False)", "*unexpected-key*0.bias*(16,) f32*"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_passes_and_fails_where_it_should(pytester: pytest.Pytester, name: str) -> None:
    if name != "hub":
        pytest.importorskip(name, exc_type=ImportError)
    count, broken = EXAMPLES[name]
    folder = shutil.copytree(ROOT / "examples" / name, pytester.path / "copy", ignore=_made)
    pytester.chdir()
    result = pytester.runpytest_subprocess("copy")
    result.assert_outcomes(passed=count)
    result.stdout.fnmatch_lines(["*forward-cuda: rehearsed*", f"*{count} of {count} checks passed*"])
    _edit(folder / broken.file, broken.old, broken.new)
    result = pytester.runpytest_subprocess("copy")
    assert result.parseoutcomes().keys() & {"failed", "error", "errors"} == {"failed"}
    result.stdout.fnmatch_lines([broken.said])
    assert "Traceback" not in result.stdout.str()


def test_the_hub_example_is_what_torch_hub_loads() -> None:
    folder = ROOT / "examples/hub"
    model = torch.hub.load(str(folder), "tiny", source="local", verbose=False)
    assert [key.split(".")[0] for key in model.state_dict()] == ["0", "0", "2", "2"]


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def _made(folder: str, names: list[str]) -> set[str]:
    """What the examples write when they are run: it is to be made anew."""
    return {name for name in names if name in ("__pycache__", "digits.ckpt", "tiny-llama", "vit32.pth")}
