"""The README's CI recipes: parsed, and their commands run in a small repository, green and red."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import pytest
from programs import programs
from readme import ROOT, block

from pytest_ckptcompat.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

yaml = pytest.importorskip("yaml")

PIP = """#!/bin/sh
echo "$@" >> "$PIP_LOG"
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``pytest``, ``ckptcompat``, and a ``pip`` that notes what it is asked for and installs nothing."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "pip").write_text(PIP)
    (folder / "pip").chmod(0o755)
    with programs(folder, {"pytest": "pytest", "ckptcompat": "pytest_ckptcompat"}):
        yield folder


@pytest.fixture
def repository(tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The gate of the README on the day of the release."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("onet.py", "net.pth"):
        shutil.copy(ROOT / "examples/onet" / name, folder)
    with monkeypatch.context() as inside:
        inside.chdir(folder)
        assert main(["lock", "net.pth", "-o", "net.ckpt.json"]) == 0
    (folder / "ckptcompat.toml").write_text(block("gate: five lines"), encoding="utf-8")
    released(folder)
    for name in [name for name in os.environ if name.startswith(("GIT_", "PYTEST_", "CKPT"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PIP_LOG", str(tmp_path / "pip.log"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return folder


def released(folder: Path) -> None:
    """Today's model is the released one."""
    path = folder / "onet.py"
    path.write_text(path.read_text().replace("outputs = 14", "outputs = 4"))


def grown(folder: Path) -> None:
    """The pull request."""
    path = folder / "onet.py"
    path.write_text(path.read_text().replace("outputs = 4  #", "outputs = 14  #"))


def run(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a CI service does, stopping at the first command that fails."""
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_github_actions(repository: Path) -> None:
    job = yaml.safe_load(block("ci: GitHub Actions"))["jobs"]["checkpoints"]
    assert [set(step) - {"with"} for step in job["steps"]] == [{"uses"}, {"uses"}, {"run"}, {"run"}]
    script = "\n".join(step["run"] for step in job["steps"] if "run" in step)
    summary = repository / "summary.md"
    summary.write_text("of an earlier step\n")
    assert run(script, repository, GITHUB_STEP_SUMMARY=str(summary)).returncode == 0
    assert summary.read_text().startswith("of an earlier step\n## Checkpoints: 1 of 1 checks passed\n")
    grown(repository)
    assert run(script, repository, GITHUB_STEP_SUMMARY=str(summary), GITHUB_ACTIONS="true").returncode == 1
    assert "| shape-mismatch | `out2.weight` | `(4, 256) f32` | `(14, 256) f32` |" in summary.read_text()
    assert (repository.parent / "pip.log").read_text() == "install pytest-ckptcompat\n" * 2


def test_the_job_that_has_the_weights(repository: Path, commands: Path) -> None:
    job = yaml.safe_load(block("ci: weights"))["jobs"]["weights"]
    cache, download = job["steps"][2], job["steps"][4]
    assert download["if"] == f"steps.{cache['id']}.outputs.cache-hit != 'true'"
    assert re.fullmatch("[0-9a-f]{40}", str(job["env"]["REVISION"]))
    hub = commands / "hf"
    hub.write_text('#!/bin/sh\n[ "$4" = --revision ] && [ ${#5} = 40 ] && mkdir -p "$7" && cp "$3" "$7"\n')
    hub.chmod(0o755)
    (repository / "test_net.py").write_text(
        "import pytest\n@pytest.mark.ckpt_compat(model='onet:Net')\ndef test_net(): ...\n"
    )
    (repository / "ckptcompat.toml").unlink()
    script = "\n".join(step["run"] for step in job["steps"] if "run" in step)
    assert run(script, repository, REVISION=job["env"]["REVISION"]).returncode == 0
    assert (repository / "weights/net.pth").exists()
    grown(repository)
    assert run(script, repository, REVISION=job["env"]["REVISION"]).returncode == 1


def test_gitlab(repository: Path) -> None:
    job = yaml.safe_load(block("ci: GitLab"))["checkpoints"]
    script, artifacts = "\n".join(job["script"]), job["artifacts"]
    assert artifacts["when"] == "always"  # a red job is the one whose report is wanted
    grown(repository)
    assert run(script, repository, GITLAB_CI="true", CI="true").returncode == 1
    case = ET.parse(repository / artifacts["reports"]["junit"]).find(".//testcase")
    assert case is not None
    assert case.get("name") == "onet"
    failure = case.find("failure")
    assert failure is not None
    assert failure.get("message", "").startswith("net.ckpt.json does not fit onet.Net: 2 mismatched")
    assert [(repository / path).read_text().count("out2.weight") for path in artifacts["paths"]] == [1]


def of_git(folder: Path) -> None:
    """The gate that ``init`` writes, in a clone whose remote has the release."""
    (folder / "ckptcompat.toml").unlink()
    committed(folder)
    done = run("git branch -M main && git remote add origin . && git fetch -q origin", folder)
    assert done.returncode == 0, done.stderr
    done = run("ckptcompat init onet:Net", folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_github_actions_against_git(repository: Path) -> None:
    of_git(repository)
    steps = yaml.safe_load(block("git: GitHub Actions"))["jobs"]["checkpoints"]["steps"]
    assert steps[0]["with"] == {"fetch-depth": 0}
    script = "\n".join(step["run"] for step in steps if "run" in step)
    assert run(script, repository).returncode == 0
    grown(repository)
    done = run(script, repository)
    assert done.returncode == 1
    assert "git:origin/main... does not fit onet.Net: 2 mismatched" in done.stdout


def test_gitlab_against_git(repository: Path) -> None:
    of_git(repository)
    job = yaml.safe_load(block("git: GitLab"))["checkpoints"]
    assert job["variables"] == {"GIT_DEPTH": 0}
    grown(repository)
    run("git update-ref -d refs/remotes/origin/main", repository)  # a runner has no such branch
    done = run("\n".join(job["script"]), repository)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "git:origin/main... does not fit onet.Net: 2 mismatched" in done.stdout


def test_pre_commit(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pre_commit")
    monkeypatch.setenv("PRE_COMMIT_HOME", str(tmp_path / "pre-commit"))
    for name, value in (("NAME", "A"), ("EMAIL", "a@example.org")):
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)
    ours = tmp_path / "hooks"
    ours.mkdir()
    shutil.copy(ROOT / ".pre-commit-hooks.yaml", ours)
    committed(ours)
    config = yaml.safe_load(block("ci: pre-commit"))
    assert {hook["id"] for hook in config["repos"][0]["hooks"]} == {hook["id"] for hook in declared()}
    config["repos"][0] |= {"repo": str(ours), "rev": run("git rev-parse HEAD", ours).stdout.strip()}
    (repository / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
    committed(repository)

    done = hooks(repository)
    assert (done.returncode, done.stdout.count("Passed")) == (0, 3), done.stdout + done.stderr

    grown(repository)
    run("git add onet.py", repository)
    done = run(f"{sys.executable} -m pre_commit run", repository)
    assert done.returncode == 1
    assert done.stdout.count("Failed") == 2  # and no lock has changed
    assert "(no files to check)Skipped" in done.stdout
    assert done.stdout.count("shape-mismatch  out2.weight  (4, 256) f32  (14, 256) f32") == 2

    lock = repository / "net.ckpt.json"
    lock.write_text(lock.read_text().replace("[4, 256]", "[14, 256]"))
    run("git add .", repository)
    done = run(f"{sys.executable} -m pre_commit run ckptcompat-diff", repository)
    assert done.returncode == 1
    assert "net.pth differs from net.ckpt.json: 1 reshaped" in done.stdout


def hooks(folder: Path) -> subprocess.CompletedProcess[str]:
    return run(f"{sys.executable} -m pre_commit run --all-files --verbose", folder)


def declared() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    return found


def committed(folder: Path) -> None:
    done = run("git init -q . && git add . && git commit -q -m all", folder)
    assert done.returncode == 0, done.stderr
