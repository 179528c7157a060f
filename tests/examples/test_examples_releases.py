"""The examples of a tested loader and of releases: green as they are, red where a user's slip would break them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from readme import ROOT, block, commands

if TYPE_CHECKING:
    from typing import Any

EXAMPLES = ROOT / "examples"


@pytest.fixture
def copied(pytester: pytest.Pytester) -> Path:
    for name in ("loader", "releases"):
        shutil.copytree(
            EXAMPLES / name, pytester.path / name, ignore=shutil.ignore_patterns("*.pth", "__pycache__")
        )
    (pytester.path / "onet").mkdir()
    shutil.copy(EXAMPLES / "onet" / "net.pth", pytester.path / "onet")
    return pytester.path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_the_mended_loader_passes_and_a_slip_in_it_fails(pytester: pytest.Pytester, copied: Path) -> None:
    pytester.runpytest_subprocess("loader").assert_outcomes(passed=2)
    edit(copied / "loader" / "detector.py", 'removeprefix("module.")', 'removeprefix("modul.")')
    result = pytester.runpytest_subprocess("loader")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*detector.load_detector raised RuntimeError: Error(s) in loading state_dict*"]
    )


def test_every_release_of_the_example_and_the_first_file_ever_trained(
    pytester: pytest.Pytester, copied: Path
) -> None:
    result = pytester.runpytest_subprocess("-v", "releases", "--ckpt-device=cpu")
    result.assert_outcomes(passed=5)
    names = ("onet[[]v1[]]", "onet[[]v2[]]", "onet[[]v3[]]", "onet[[]today[]]", "first-file")
    result.stdout.fnmatch_lines([f"*::{name} PASSED*" for name in names])
    edit(copied / "releases" / "boxes.py", "outputs = 14", "outputs = 15")
    drifted = pytester.runpytest_subprocess("releases", "-k", "today")
    drifted.stdout.fnmatch_lines(["boxes.Net does not save what *v3.ckpt.json has: 2 keys differ;*"])


def test_production_loads_the_first_file_by_the_same_recipes(copied: Path) -> None:
    command = [sys.executable, str(copied / "releases" / "predict.py"), str(copied / "onet" / "net.pth")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "net.pth: 14 outputs\n", done.stderr


def test_the_readme_s_loader(pytester: pytest.Pytester, copied: Path) -> None:
    pytester.runpytest_subprocess("loader", "-k", "loads_everything")  # which trains it
    (copied / "loader" / "test_loader.py").write_text(block("the loader under test"))
    pytester.runpytest_subprocess("loader").assert_outcomes(passed=1)
    said = (
        "from pytest_ckptcompat import check; from detector import load_detector_before as before; "
        "print(check(ckpt='detector.pth', loader=before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", said], cwd=copied / "loader", capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(block("the loader under test: report")), done.stderr


def test_the_readme_s_releases(
    pytester: pytest.Pytester, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command on the model of net.pth, then on today's: what it writes is the file in the README."""
    from pytest_ckptcompat.cli import main

    shutil.copy(EXAMPLES / "onet" / "onet.py", copied / "onet")
    monkeypatch.chdir(copied / "onet")
    monkeypatch.syspath_prepend(str(copied / "onet"))
    (line,) = commands(block("releases: the command"))
    _, *arguments = line.split()
    assert main([*" ".join(arguments).replace("v2 onet:Net", "v1 onet:NetV1").split()]) == 0
    assert main(arguments) == 0
    assert told(Path("releases.toml").read_text()) == told(block("releases: the file"))
    Path("ckptcompat.toml").write_text(block("releases: the gate"))
    pytester.runpytest_subprocess("--rootdir=.", "ckptcompat.toml").assert_outcomes(passed=3)
    names: dict[str, Any] = {}
    exec(block("releases: production"), names)
    assert names["net"].out2.out_features == 14
    sys.modules.pop("onet", None)


def told(text: str) -> list[str]:
    """Lines without comments."""
    return [stripped for line in text.splitlines() if (stripped := line.partition("#")[0].rstrip())]
