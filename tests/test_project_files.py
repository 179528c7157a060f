"""What the project runs elsewhere, and asks of others, agrees with what it says in pyproject.toml and the README."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import tomllib
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from readme import ROOT, block

from pytest_ckptcompat.cli import main

yaml = pytest.importorskip("yaml")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")
}
FORMS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")
    if path.stem != "config"
}


def steps(workflow: str) -> list[dict[str, Any]]:
    return [step for job in WORKFLOWS[workflow]["jobs"].values() for step in job["steps"]]


def commands(workflow: str) -> str:
    return "\n".join(step["run"] for step in steps(workflow) if "run" in step)


def runs_of_the_suite() -> list[dict[str, str]]:
    matrix = dict(WORKFLOWS["ci"]["jobs"]["tests"]["strategy"]["matrix"])
    more = matrix.pop("include")
    return [dict(zip(matrix, each, strict=True)) for each in itertools.product(*matrix.values())] + more


def test_the_suite_runs_on_every_python_that_is_promised() -> None:
    named = {
        each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d", each)
    }
    assert named <= {each["python"] for each in runs_of_the_suite()}
    assert PROJECT["requires-python"].removeprefix(">=") in {
        each["python"] for each in runs_of_the_suite() if each["versions"] == "oldest"
    }


def test_the_suite_runs_with_workers_and_without() -> None:
    assert {each["workers"] for each in runs_of_the_suite()} == {"-n 2", "-n 0"}


@pytest.mark.parametrize("package", ["torch", "pytest"])
def test_the_oldest_versions_are_those_that_are_required(package: str) -> None:
    required = next(each for each in PROJECT["dependencies"] if each.startswith(package))
    assert f"'{required.replace('>=', '==')}.*'" in commands("ci")


def test_ci_runs_what_contributors_run() -> None:
    assert "bash .ci/run" in commands("ci").splitlines()
    assert "bash .ci/run" in (ROOT / "CONTRIBUTING.md").read_text()
    assert "pytest ckptcompat.toml --ckpt-required" in commands("ci")


def test_nothing_is_published_that_was_not_tested() -> None:
    jobs = WORKFLOWS["release"]["jobs"]
    assert "bash .ci/wheel" in commands("release").splitlines()
    assert jobs["publish"]["needs"] == "build"
    assert not any("build" in step.get("run", "") for step in jobs["publish"]["steps"])
    built, published = (
        next(step for step in jobs[job]["steps"] if f"{verb}-artifact" in step.get("uses", ""))
        for job, verb in (("build", "upload"), ("publish", "download"))
    )
    assert built["with"]["name"] == published["with"]["name"]
    assert built["with"]["path"] == published["with"]["path"] == "dist/"


def test_workflows_may_write_nothing_but_what_they_publish() -> None:
    for workflow in WORKFLOWS.values():
        assert workflow["permissions"] == {"contents": "read"}
        for job in workflow["jobs"].values():
            assert set(job.get("permissions", {})) <= {"id-token"}
            assert all("${{ github.event" not in step.get("run", "") for step in job["steps"])


def test_scripts_that_are_run_are_there() -> None:
    for name in WORKFLOWS:
        for script in re.findall(r"bash (\S+)", commands(name)):
            assert (ROOT / script).is_file()


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["title"] == PROJECT["name"]
    assert citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "authors"} <= citation.keys()


def test_forms_ask_for_headers_and_never_for_weights() -> None:
    assert FORMS
    for form in FORMS.values():
        assert {"name", "description", "body"} <= form.keys()
        asked = json.dumps(form["body"])
        assert "ckptcompat show" in asked
        assert "lock" in asked
        assert "don't send weights" in asked
        ids = [part["id"] for part in form["body"] if "id" in part]
        assert len(ids) == len(set(ids))


def test_what_forms_ask_for_can_be_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.pth").write_bytes((ROOT / "examples/vit/vit.pth").read_bytes())
    monkeypatch.chdir(tmp_path)
    asked = {command for form in FORMS.values() for command in re.findall(r"`(ckptcompat [^`]*)`", str(form))}
    assert len(asked) > 2
    for command in asked:
        if "package.module:name" in command or "…" in command:
            continue
        if command.endswith("--version"):
            with pytest.raises(SystemExit) as stop:
                main(["--version"])
            assert not stop.value.code
        else:
            assert main(shlex.split(command)[1:]) == 0, command
    assert '"tensors"' in capsys.readouterr().out


def test_the_gate_is_for_every_checkpoint_of_the_examples() -> None:
    checks = tomllib.loads((ROOT / "ckptcompat.toml").read_text())["check"]
    gated = {check["ckpt"] for check in checks}
    saved = {path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").rglob("*.pth")}
    folders = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "examples").rglob(".metadata")}
    assert gated == saved | folders


def test_the_picture_shows_the_report_that_the_readme_quotes() -> None:
    """Both are what is printed today: the README's is compared with a run, and this one with the README's."""
    svg = ET.parse(ROOT / "docs/pictures/report.svg")
    lines: dict[float, str] = {}
    for text in svg.iter("{http://www.w3.org/2000/svg}text"):
        line = float(text.attrib["y"])
        lines[line] = lines.get(line, "") + " " + (text.text or "")
    shown = [" ".join(line.split()) for line in lines.values()]
    quoted = [" ".join(line.split()) for line in block("report: failing").splitlines() if line]
    rows = [line for line in quoted if line.startswith(("rule", "shape-mismatch", "Recipe(", "this recipe"))]
    assert len(rows) == 5
    assert set(rows) <= set(shown)


def test_links_of_the_documents_lead_somewhere() -> None:
    documents = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
    for page in [*documents, *(ROOT / "docs").glob("*.md")]:
        for target, _, anchor in re.findall(r"\]\(([^)#]*)(#([^)]+))?\)", page.read_text()):
            place = page.parent / target if target else page
            assert "://" in target or place.exists(), (page.name, target)
            if anchor:
                heads = re.findall(r"^#+ (.*)$", place.read_text(), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
