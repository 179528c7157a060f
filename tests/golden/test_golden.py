"""All that users see, compared to the letter with the texts in ``recorded``.

After a change that is meant to be seen: ``GOLDEN_RENEW=1 pytest tests/golden``, then look at ``git diff``.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RECORDED = HERE / "recorded"
PARTS = {
    "run,examples": ["pytest", "examples"],
    "pairs,commands,operators": ["pairs", "commands", "operators"],
}
"""Each is made in a process of its own, and fills these folders."""

HIDDEN = ("PYTEST_", "COVERAGE_", "CI", "GITHUB_", "BUILD_NUMBER", "RANK", "WORLD_SIZE", "FORCE_COLOR", "PY_COLORS")  # fmt: skip
SET = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1"}
"""The environment: no card, no colours, and no plugin but ours."""


@pytest.mark.parametrize("part", list(PARTS))
def test_users_see_what_they_saw(part: str, tmp_path: Path) -> None:
    if "examples" in part:
        pytest.importorskip("numpy")  # of the example npz
    environment = {key: value for key, value in os.environ.items() if not key.startswith(HIDDEN)} | SET
    script = [sys.executable, str(HERE / "make_golden.py"), part, str(tmp_path)]
    made = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    if os.environ.get("GOLDEN_RENEW"):
        for folder in PARTS[part]:
            shutil.rmtree(RECORDED / folder, ignore_errors=True)
        shutil.copytree(tmp_path, RECORDED, dirs_exist_ok=True)
    old, new = texts(RECORDED, part), texts(tmp_path, part)
    assert old, "nothing is recorded"
    changes = "".join(
        "".join(difflib.unified_diff(*(text.get(name, "").splitlines(keepends=True) for text in (old, new)), f"recorded/{name}", name))
        for name in sorted(old | new)
        if comparable(name, old.get(name)) != comparable(name, new.get(name))
    )  # fmt: skip
    if changes:
        pytest.fail(f"{changes}\nIf this is meant: GOLDEN_RENEW=1 pytest tests/golden", pytrace=False)


def texts(folder: Path, part: str) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8")
        for name in PARTS[part]
        for path in (folder / name).rglob("*.txt")
    }


def comparable(name: str, text: str | None) -> str | None:
    """Where the layout is argparse's, which is another from Python 3.13 on, the words alone."""
    if text is None or sys.version_info < (3, 13) or "help" not in name:
        return text
    words = re.sub(r"(-\w) (\S+), (--[\w-]+) \2", r"\1, \3 \2", " ".join(text.split()))
    return words.replace("'", "")
