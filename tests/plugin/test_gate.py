"""The gate of a repository: whole runs of pytest in a copy of the O-Net example, with its lock and no weights."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from textwrap import indent
from typing import Any

import pytest
import torch
from interpreter import run_python
from readme import ROOT, block, commands

from pytest_ckptcompat.cli import main

TODAY, RELEASED = "outputs = 14  #", "outputs = 4  #"
NORM = "nn.BatchNorm2d(to), "


@pytest.fixture
def repository(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """As it was when net.pth was released: the code of that day, the lock, the README's five lines."""
    monkeypatch.syspath_prepend(str(pytester.path))
    monkeypatch.delitem(sys.modules, "onet", raising=False)  # another test's
    for name in ("onet.py", "net.pth"):
        shutil.copy(ROOT / "examples/onet" / name, pytester.path)
    edit(pytester, TODAY, RELEASED)
    *_, line = commands(block("gate: lock"))
    assert main(line.split()[1:]) == 0
    (pytester.path / "net.pth").unlink()
    (pytester.path / "ckptcompat.toml").write_text(block("gate: five lines"), encoding="utf-8")
    return pytester


def edit(repository: pytest.Pytester, old: str, new: str) -> None:
    path = repository.path / "onet.py"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def add_recipe(repository: pytest.Pytester) -> None:
    with (repository.path / "ckptcompat.toml").open("a", encoding="utf-8") as file:
        file.write(block("gate: recipe"))


def stages(repository: pytest.Pytester) -> tuple[pytest.RunResult, dict[str, Any]]:
    """One run with a JSON report: how pytest ended, and the one check's object."""
    importlib.invalidate_caches()
    result = repository.runpytest("--ckpt-report=json:report.json")
    (check,) = json.loads((repository.path / "report.json").read_text())["checks"]
    return result, check


def statuses(check: dict[str, Any]) -> dict[str, str]:
    return {stage["name"]: stage["status"] for stage in check["stages"]}


def test_the_lock_is_all_that_is_needed(repository: pytest.Pytester) -> None:
    assert not list(repository.path.glob("*.pth"))
    assert (repository.path / "net.ckpt.json").stat().st_size < 4096
    result, check = stages(repository)
    result.assert_outcomes(passed=1)
    assert statuses(check)["forward-cuda"] == "rehearsed"


def test_another_size_of_out2_fails_with_the_table_of_the_readme(repository: pytest.Pytester) -> None:
    edit(repository, RELEASED, TODAY)
    result, _ = stages(repository)
    result.assert_outcomes(failed=1)
    table = block("report: failing").partition("    Recipe(")[0].replace("net.pth", "net.ckpt.json")
    suggestion = (
        f"{indent(block('gate: recipe'), '  ')}put it below its [[check]], in place of any recipe there\n"
    )
    assert table + suggestion in result.stdout.str()


def test_the_recipe_makes_it_pass_and_the_forward_pass_is_rehearsed(repository: pytest.Pytester) -> None:
    edit(repository, RELEASED, TODAY)
    add_recipe(repository)
    result, check = stages(repository)
    result.assert_outcomes(passed=1)
    assert check["keys"] == {"matched": 63, "total": 63}
    found = statuses(check)
    assert found["forward-cuda"] == "rehearsed"
    assert {found[name] for name in ("load", "verify", "forward")} == {"skipped"}
    assert block("gate: what a lock leaves open") in result.stdout.str()


def test_a_wrong_shape_inside_forward_is_found_without_weights(repository: pytest.Pytester) -> None:
    edit(repository, "self.fc(x.flatten(1))", "self.fc(x.flatten(2))")
    result, check = stages(repository)
    result.assert_outcomes(failed=1)
    assert [found["rule"] for found in check["findings"]] == ["forward-error"]


def test_every_release_is_a_test_and_what_is_waived_is_no_error(repository: pytest.Pytester) -> None:
    (repository.path / "releases").mkdir()
    for version in ("v9", "v10"):
        lock = json.loads((repository.path / "net.ckpt.json").read_text())
        lock["tensors"]["aux.weight"] = ["float32", [3]]
        (repository.path / f"releases/{version}.ckpt.json").write_text(json.dumps(lock))
    text = block("gate: releases")
    (repository.path / "ckptcompat.toml").write_text(text, encoding="utf-8")
    result = repository.runpytest("-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*::releases[[]v9.ckpt.json[]] *", "*::releases[[]v10.ckpt.json[]] *"])
    (repository.path / "ckptcompat.toml").write_text(text.partition("  [[check.allow]]")[0], encoding="utf-8")
    repository.runpytest().assert_outcomes(failed=2)


RUN = """
import pytest, torch
from pace import within
with within(3):
    code = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "--ckpt-report=json:run.json"])
print(int(code))
"""


def test_of_ten_releases_the_broken_one_is_named_within_three_seconds(
    repository: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole checkpoints, by their headers; the processor's time, since others use the machine too."""
    path = ROOT / "examples/onet/net.pth"
    releases = repository.path / "releases"
    releases.mkdir()
    for version in range(1, 11):
        shutil.copy(path, releases / f"v{version}.pth")
    state = torch.load(path, weights_only=True)
    state["fc.b"] = state.pop("fc.bias")
    torch.save(state, releases / "v7.pth")
    text = '[[check]]\nname = "releases"\nckpt = "releases/*.pth"\nmodel = "onet:Net"\n'
    (repository.path / "ckptcompat.toml").write_text(text)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    *said, code = run_python(f"import os; os.chdir({str(repository.path)!r}){RUN}").splitlines()
    assert int(code) == pytest.ExitCode.TESTS_FAILED
    told = "\n".join(said)
    assert "FAILED ckptcompat.toml::releases[v7.pth] - releases/v7.pth does not fit" in told
    assert "1 failed, 9 passed" in told
    checks = json.loads((repository.path / "run.json").read_text())["checks"]
    assert [(check["missing"], check["unexpected"]) for check in checks if not check["ok"]] == [
        (["fc.bias"], ["fc.b"])
    ]


@pytest.mark.parametrize(
    "left", ["", "nn.Identity(), "], ids=["moves what follows", "leaves its place empty"]
)
@pytest.mark.parametrize("grown", [False, True], ids=["alone", "beside a recipe"])
def test_a_batchnorm_that_is_removed_fails(repository: pytest.Pytester, left: str, grown: bool) -> None:
    edit(repository, NORM, left)
    if grown:
        edit(repository, RELEASED, TODAY)
        add_recipe(repository)
    result, check = stages(repository)
    result.assert_outcomes(failed=1)
    assert "conv1.1.running_mean" in check["unexpected"]
    assert "conv4.1.num_batches_tracked" in check["unexpected"]
    assert check["missing"] == ([] if left else ["conv1.2.bias", "conv2.2.bias", "conv3.2.bias"])
