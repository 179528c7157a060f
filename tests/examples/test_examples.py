"""The examples pass as their users run them, and fail where a user's slip would break them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., pytest.RunResult]

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a test file of an example, in a copy in which texts may be replaced."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(name, raising=False)

    def ran(path: str, *changes: tuple[str, str]) -> pytest.RunResult:
        folder, name = path.split("/")
        shutil.copytree(EXAMPLES / folder, pytester.path, dirs_exist_ok=True)
        test = pytester.path / name
        text = test.read_text(encoding="utf-8")
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        test.write_text(text, encoding="utf-8")
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", name)

    return ran


@pytest.mark.parametrize(
    "path",
    [
        "decoder/test_vocabulary.py",
        "decoder/test_block_expansion.py",
        "decoder/test_grouped_queries.py",
        "vit/test_vit.py",
        "npz/test_npz.py",
    ],
)
def test_it_passes(run: Run, path: str) -> None:
    result = run(path)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*1 of 1 checks passed*"])


@pytest.mark.parametrize(
    ("path", "old", "new", "said"),
    [
        pytest.param(
            "decoder/test_block_expansion.py", ', "mlp.down_proj.weight"', ",", "*the function is not kept*",
            id="an output of the new block is left as it was",
        ),
        pytest.param(
            "decoder/test_vocabulary.py", '"layers.*", "positions.*"', '"embed*"', "*recipe-protected-key*embed_tokens.weight*",
            id="what grows is protected",
        ),
        pytest.param(
            "decoder/test_vocabulary.py", '"embed_tokens.weight"', '"embed_token.weight"', "*recipe-unused-op*",
            id="a slip in a key",
        ),
        pytest.param(
            "decoder/test_vocabulary.py", "recipe=NEW_WORDS", "recipe=None", "*embed_tokens.weight*(11, 32)*(16, 32)*",
            id="no recipe",
        ),
        pytest.param(
            "decoder/test_grouped_queries.py", "[kv]_proj", "k_proj", "*layers.{0-2}.self_attn.v_proj.weight*",
            id="values forgotten",
        ),
        pytest.param(
            "vit/test_vit.py", "(6, 6)", "(5, 5)", "*pos_embed*(1, 26, 32)*(1, 37, 32)*", id="another grid than the model's",
        ),
        pytest.param(
            "vit/test_vit.py", ", prefix_tokens=1", "", "*pos_embed*", id="the class token forgotten",
        ),
        pytest.param(
            "npz/test_npz.py", "transpose(", "# transpose(", "*out.weight*(2, 1) f32*(1, 2) f32*", id="kernels as they were",
        ),
    ],
)  # fmt: skip
def test_it_fails_with(run: Run, path: str, old: str, new: str, said: str) -> None:
    result = run(path, (old, new))
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([said])
    assert "Traceback" not in result.stdout.str()
