"""``[[check]] releases = …``: every release ever made is a test, and so is today's model."""

from __future__ import annotations

import json
import sys
from importlib import import_module, invalidate_caches

import pytest
import torch

from pytest_ckptcompat.cli import main

CHECK = """
[[check]]
name = "net"
releases = "releases.toml"
model = "nets:V3"
inputs = ["3x6"]
"""

RELEASES = """
[[release]]
name = "v1"
lock = "locks/v1.ckpt.json"
  [[release.recipe]]
  op = "tile"
  key = "head.*"
  dim = 0

[[release]]
name = "v2"
lock = "locks/v2.ckpt.json"
  [[release.recipe]]
  op = "tile"
  key = "head.*"
  dim = 0

[[release]]
name = "v3"
lock = "locks/v3.ckpt.json"
"""

V3 = """
class V3(V1):
    def __init__(self):
        super().__init__(outputs=14)
"""


@pytest.fixture
def released(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A repository with three releases: 4, 10, 14 outputs."""
    monkeypatch.chdir(project.path)
    file = project.path / "nets.py"
    file.write_text(file.read_text() + V3)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    invalidate_caches()
    (project.path / "locks").mkdir()
    for name in ("V1", "V2", "V3"):
        torch.manual_seed(0)
        torch.save(getattr(import_module("nets"), name)().state_dict(), f"{name.lower()}.pth")
        assert main(["lock", f"{name.lower()}.pth", "-o", f"locks/{name.lower()}.ckpt.json"]) == 0
    (project.path / "releases.toml").write_text(RELEASES)
    (project.path / "ckptcompat.toml").write_text(CHECK)
    return project


def out(result: pytest.RunResult) -> str:
    return "\n".join(result.outlines)


def test_every_release_is_a_test_and_so_is_today_s_model(released: pytest.Pytester) -> None:
    result = released.runpytest("-v", "--ckpt-report=json:report.json")
    result.stdout.fnmatch_lines(
        [f"ckptcompat.toml::net[[]{name}[]] PASSED*" for name in ("v1", "v2", "v3", "today")]
    )
    reports = json.loads((released.path / "report.json").read_text())["checks"]
    stages = [{stage["name"]: stage for stage in report["stages"]} for report in reports]
    assert [stage["open"]["detail"].rpartition(", ")[2] for stage in stages[:3]] == [
        f"release {name}" for name in ("v1", "v2", "v3")
    ]
    verify = stages[0]["verify"]["detail"]
    assert "promises of its steps kept on synthetic values; a lock file has no values: " in verify
    unchecked = sum(promise["status"] == "unchecked" for promise in reports[0]["promises"])
    assert verify.endswith(f": {unchecked} promises not checked")
    kept = [promise for promise in reports[0]["promises"] if promise["status"] == "kept"]
    assert [promise["name"] for promise in kept].count('tile("head.*", dim=0): old rows kept') == 2
    assert stages[0]["recipe"]["detail"] == "v1 → v2 → v3: changes 2 of 9 keys"
    assert stages[3]["compare"]["detail"] == "9 of 9 keys are those of the last release"


def test_nothing_is_opened_where_tests_are_only_collected(released: pytest.Pytester) -> None:
    (released.path / "locks" / "v2.ckpt.json").unlink()
    result = released.runpytest("--collect-only", "-q")
    assert result.outlines[:4] == [f"ckptcompat.toml::net[{name}]" for name in ("v1", "v2", "v3", "today")]


def test_drift_is_red_until_there_is_a_release(released: pytest.Pytester) -> None:
    file = released.path / "nets.py"
    file.write_text(file.read_text().replace("outputs=14", "outputs=15"))
    del sys.modules["nets"]
    invalidate_caches()
    result = released.runpytest()
    result.assert_outcomes(failed=4)
    text = out(result)
    assert (
        "nets.V3 does not save what locks/v3.ckpt.json has: 2 keys differ; if that is meant, make a new"
        in text
    )
    assert "release-drift  head.weight  (14, 8) f32   (15, 8) f32" in text


def test_a_step_that_does_not_lead_to_the_next_release(released: pytest.Pytester) -> None:
    wrong = RELEASES.replace("head.*", "head.weight", 1)
    (released.path / "releases.toml").write_text(wrong)
    result = released.runpytest()
    result.assert_outcomes(failed=1, passed=3)
    assert "was not checked: the recipe of release v1 does not give v2: 1 mismatched (head.bias (4,)" in out(
        result
    )


def test_a_real_file_of_any_release_is_found_by_its_header(released: pytest.Pytester) -> None:
    table = '[[check]]\nmodel = "nets:V3"\nckpt = "*.pth"\nrecipe = "releases.toml"\ninputs = ["3x6"]\n'
    (released.path / "ckptcompat.toml").write_text(table)
    torch.save({**torch.load("v2.pth"), "head.bias": torch.zeros(11)}, "other.pth")
    result = released.runpytest("-v")
    result.assert_outcomes(passed=3, failed=1)
    text = out(result)
    assert (
        "other.pth was not checked: no release has these keys and shapes; the nearest is v2: 1 mism" in text
    )


def test_no_lock_of_a_release_is_rewritten(released: pytest.Pytester) -> None:
    lock = released.path / "locks" / "v1.ckpt.json"
    torch.save(torch.load("v2.pth"), "v1.pth")  # so that an update would change it
    before = lock.read_bytes()
    released.runpytest("--ckpt-lock-update").assert_outcomes(passed=4)
    assert lock.read_bytes() == before


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('releases = "releases.toml"\nckpt = "v1.pth"', "ckpt beside releases"),
        ('releases = "releases.toml"\nloader = "nets:V1"', "loader beside releases"),
        ('releases = "releases.toml"\nrecipe = "grow.toml"', "recipe beside releases"),
        ("releases = 3", "releases wants the path of a releases file"),
        ('releases = "none.toml"', "none.toml does not exist"),
        ('releases = "nets.py"', "nets.py: the recipe file is not valid TOML"),
        ('releases = "ckptcompat.toml"', "ckptcompat.toml: it has no [[release]]"),
    ],
)
def test_a_wrong_table_is_one_failed_test(released: pytest.Pytester, table: str, said: str) -> None:
    (released.path / "ckptcompat.toml").write_text(f'[[check]]\nmodel = "nets:V3"\n{table}\n')
    result = released.runpytest()
    result.assert_outcomes(errors=1)
    assert said in out(result)
