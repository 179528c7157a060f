"""Plugins of others show a failed check with its verdict and its whole report, where they are installed."""

import html
import json

import pytest

VERDICT = "v1.pth does not fit nets.V2: 2 mismatched, 0 missing, 0 unexpected (7 of 9 keys match)"
ROW = "shape-mismatch  head.weight  (4, 8) f32    (10, 8) f32"
SUGGESTED = 'Recipe(tile("head.*", dim=0))'


@pytest.fixture
def ran(project):
    """Runs a check that fails and one that passes, under the plugins of that name alone."""
    project.makepyfile(
        test_it="""
        import pytest
        from nets import V1, V2

        @pytest.mark.ckpt_compat(model=V2, ckpt="v1.pth")
        def test_grown(ckpt_model): ...

        @pytest.mark.ckpt_compat(model=V1, ckpt="v1.pth")
        def test_same(): ...
        """
    )

    def run(module, *options):
        pytest.importorskip(module)
        others = [f"-pno:{name}" for name in ("sugar", "randomly") if name not in module]
        result = project.runpytest(*others, *options)
        return result.stdout.str() + result.stderr.str()

    return run


def test_html(ran, project):
    ran("pytest_html", "--html=page.html", "--self-contained-html")
    page = (project.path / "page.html").read_text()
    for _ in range(3):  # the reports are in JSON in an attribute, and are HTML themselves
        page = html.unescape(page)
    for text in (VERDICT, ROW, SUGGESTED):
        assert text in page.replace("\\", "")
    assert "Traceback" not in page


def test_json_report(ran, project):
    ran("pytest_jsonreport", "--json-report", "--json-report-file=report.json")
    grown, same = json.loads((project.path / "report.json").read_text())["tests"]
    assert (grown["outcome"], same["outcome"]) == ("failed", "passed")
    assert grown["call"]["crash"] == {"path": "test_it.py", "lineno": 4, "message": VERDICT}
    assert ROW in grown["call"]["longrepr"]


def test_annotations_of_github(ran, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    printed = ran("pytest_github_actions_annotate_failures")
    lines = [line for line in printed.splitlines() if "::error" in line]
    assert len(lines) == 1
    assert lines[0].endswith(f"::error file=test_it.py,line=4::test_grown[v1.pth]%0A%0A{VERDICT}")


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("pytest_rich", ["--rich"]),
        ("pytest_sugar", ["--force-sugar", "--color=no"]),
        ("pytest_randomly", []),
        ("pytest_cov", ["--cov=nets"]),
    ],
)
def test_the_whole_report_is_printed(ran, module, options):
    printed = ran(module, *options)
    for text in (ROW, SUGGESTED, "compare                failed    7 of 9 keys match"):
        assert text in printed


def test_of_a_test_that_is_run_again_the_last_attempt_counts(ran, project):
    printed = ran("pytest_rerunfailures", "--reruns=2", "--ckpt-report=json:report.json")
    assert "1 failed, 1 passed, 2 rerun" in printed
    assert "1 of 2 checks passed" in printed
    checks = json.loads((project.path / "report.json").read_text())["checks"]
    assert [check["nodeid"] for check in checks] == [
        "test_it.py::test_grown[v1.pth]",
        "test_it.py::test_same[v1.pth]",
    ]
