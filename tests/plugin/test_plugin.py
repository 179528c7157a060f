"""The marker, the fixtures and the options, as a user meets them."""

import json
import re

import pytest

MARKED = """
    import pytest
    import pytest_ckptcompat as cc
    from nets import V1, V2, Forgetful, Broken, Quits

    @pytest.mark.ckpt_compat({arguments})
    def test_it({fixtures}):
        {body}
"""


def marked(project, arguments, fixtures="", body="..."):
    project.makepyfile(test_it=MARKED.format(arguments=arguments, fixtures=fixtures, body=body))


def out(result):
    return "\n".join(result.outlines)


GROW = "model=V2, source_model=V1, recipe=cc.Recipe(cc.tile('head.*', dim=0)), inputs=(3, 6)"


def test_what_fits_passes_and_says_where_it_ran(project):
    marked(project, "model=V1, inputs=(3, 6)")
    result = project.runpytest("--ckpt=v1.pth")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            "test_it.py::test_it[[]v1.pth[]]",
            "  v1.pth fits nets.V1: 9 of 9 keys match",
            "  verified: untouched*",
            "  forward: passed on cpu: (3, 4)",
            "  forward-cuda: rehearsed simulated cuda:0 (fake tensors): *",
        ]
    )
    assert "1 of 1 checks passed" in out(result)


def test_what_does_not_fit_is_a_failure_without_a_traceback(project):
    marked(project, "model=V2, inputs=(3, 6)")
    result = project.runpytest("--ckpt=v1.pth")
    result.assert_outcomes(failed=1)
    text = out(result)
    assert "v1.pth does not fit nets.V2: 2 mismatched, 0 missing, 0 unexpected (7 of 9 keys match)" in text
    assert "shape-mismatch  head.weight  (4, 8) f32    (10, 8) f32" in text
    assert 'Recipe(tile("head.*", dim=0))' in text
    assert "Traceback" not in text
    assert "conftest" not in text
    report = text.split("_ test_it[v1.pth] _")[1].split("- checkpoints -")[0].splitlines()
    assert all(len(line) <= 80 for line in report if not line.startswith("v1.pth"))


def test_a_line_for_each_failure_where_that_is_asked_for(project):
    marked(project, "model=V2")
    text = out(project.runpytest("--ckpt=v1.pth", "--tb=line"))
    failures = text.partition("= FAILURES =")[2].partition("- checkpoints -")[0].splitlines()
    assert [line for line in failures if line.strip("=-")] == [
        "test_it.py:5: v1.pth does not fit nets.V2: 2 mismatched, 0 missing, 0 unexpected (7 of 9 keys match)"
    ]


@pytest.mark.parametrize("ci", [False, True])
def test_the_short_summary_has_the_verdict_alone(project, monkeypatch, ci):
    if ci:
        monkeypatch.setenv("CI", "true")
    marked(project, "model=V2")
    result = project.runpytest("--ckpt=v1.pth")
    summary = out(result).split("short test summary info")[1]
    (line,) = [line for line in summary.splitlines() if "FAILED" in line]
    whole = (
        "FAILED test_it.py::test_it[v1.pth] - v1.pth does not fit nets.V2: "
        "2 mismatched, 0 missing, 0 unexpected (7 of 9 keys match)"
    )
    assert line == whole if ci else whole.startswith(line.removesuffix("..."))
    assert "shape-mismatch" not in summary


def test_junit_has_the_verdict_as_message_and_the_report_in_the_body(project):
    marked(project, "model=V2", "ckpt_model")
    project.runpytest("--ckpt=v1.pth", "--junitxml=junit.xml")
    text = (project.path / "junit.xml").read_text()
    assert 'errors="0" failures="1"' in text
    assert '<failure message="v1.pth does not fit nets.V2: 2 mismatched, 0 missing, 0 unexpected' in text
    assert "shape-mismatch  head.weight" in text
    assert '<property name="ckpt_verdict"' in text


def test_with_the_recipe_it_passes(project):
    marked(
        project, GROW, "ckpt_model", "assert ckpt_model.head.out_features == 10 and not ckpt_model.training"
    )
    result = project.runpytest("--ckpt=v1.pth")
    result.assert_outcomes(passed=1)
    assert "v1.pth fits nets.V2 with the recipe: 9 of 9 keys match" in out(result)


def test_no_checkpoint_is_skipped_and_counted(project):
    marked(project, GROW, "ckpt_model")
    result = project.runpytest("-rs")
    result.assert_outcomes(skipped=1)
    assert "\n0 of 1 checks passed; 1 skipped: no checkpoint (--ckpt, --ckpt-required)\n" in out(result)
    assert re.search(r"SKIPPED \[1\] test_it.py:\d+: no checkpoint: give --ckpt PATH", out(result))


def test_no_checkpoint_fails_where_one_is_required(project):
    marked(project, GROW)
    result = project.runpytest("--ckpt-required")
    result.assert_outcomes(failed=1)
    assert "no-checkpoint" in out(result)
    assert "\n0 of 1 checks passed\n" in out(result)


def test_one_test_for_each_checkpoint(project):
    (project.path / "v1.pth").rename(project.path / "a.pth")
    (project.path / "b.pth").write_bytes((project.path / "a.pth").read_bytes())
    marked(project, "model=V1")
    result = project.runpytest("--ckpt=*.pth", "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_it[[]a.pth[]] PASSED*", "*test_it[[]b.pth[]] PASSED*"])


def test_a_checkpoint_in_the_marker_is_relative_to_the_test(project):
    (project.path / "sub").mkdir()
    (project.path / "v1.pth").rename(project.path / "sub/v1.pth")
    marked(project, "model=V1, ckpt='v1.pth'")
    (project.path / "test_it.py").rename(project.path / "sub/test_it.py")
    project.runpytest().assert_outcomes(passed=1)


def test_the_ini_file_serves_as_well(project):
    project.makeini("[pytest]\nckpt = v1.pth\nckpt_device = none\nckpt_required = true\n")
    marked(project, "model=V1, inputs=(3, 6)")
    result = project.runpytest("-v")
    result.assert_outcomes(passed=1)
    assert "[v1.pth]" in out(result)


def test_a_variable_names_checkpoints_instead_of_the_ini_key_and_the_option_instead_of_both(
    project, monkeypatch
):
    (project.path / "a.pth").write_bytes((project.path / "v1.pth").read_bytes())
    project.makeini("[pytest]\nckpt = none.pth\n")
    marked(project, "model=V1")
    monkeypatch.setenv("CKPTCOMPAT_CKPT", "a.pth\n\n  v1.pth \n")
    result = project.runpytest("-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_it[[]a.pth[]] PASSED*", "*test_it[[]v1.pth[]] PASSED*"])
    project.runpytest("--ckpt=v1.pth").assert_outcomes(passed=1)
    for value, told in (("b.pth", "CKPTCOMPAT_CKPT: b.pth does not exist"), ("", "CKPTCOMPAT_CKPT is empty")):
        monkeypatch.setenv("CKPTCOMPAT_CKPT", value)
        result = project.runpytest()
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert f"ERROR: {told}" in "\n".join(result.errlines)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "ckpt_severity = mising-key=error",
            "the ini key ckpt_severity: no rule 'mising-key': did you mean 'missing-key'?",
        ),
        (
            "ckpt_severity = missing-key=eror",
            "the ini key ckpt_severity: missing-key='eror': use error, warn or off",
        ),
        (
            "ckpt_limits = tensor=5",
            "the ini key ckpt_limits: 'tensor=5' is not a limit: use NAME=VALUE; did you mean tensors=5?",
        ),
        ("ckpt_device = gpu", "the ini key ckpt_device='gpu' is not a device"),
        ("ckpt_required = maybe", "the ini key ckpt_required: "),
        ("ckpt = none.pth", "the ini key ckpt: none.pth does not exist"),
    ],
)
def test_what_is_wrong_in_the_ini_file_is_told_with_its_key(project, line, told):
    project.makeini(f"[pytest]\n{line}\n")
    marked(project, "model=V1")
    result = project.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {told}" in "\n".join(result.errlines)
    assert "INTERNALERROR" not in out(result)


def test_native_toml_ini(project):
    project.makefile(
        ".toml", pyproject="[tool.pytest.ini_options]\nckpt = ['v1.pth']\nckpt_device = 'none'\n"
    )
    marked(project, "model=V1")
    project.runpytest().assert_outcomes(passed=1)


HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1816594\n"


@pytest.fixture(params=["missing", "empty", "HTML", "LFS", "folder"])
def fault(request, project):
    """What x.pth is, and a word of what is told."""
    match request.param:
        case "missing":
            return "does not exist"
        case "folder":
            project.mkdir("x.pth")
        case kind:
            (project.path / "x.pth").write_bytes({"empty": b"", "HTML": HTML, "LFS": LFS}[kind])
    return request.param


def test_a_path_that_is_no_checkpoint_ends_the_run_with_two_lines(project, fault):
    marked(project, "model=V1")
    result = project.runpytest("--ckpt=x.pth")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    errors = [line for line in result.errlines if line]
    assert len(errors) <= 2
    assert errors[0].startswith("ERROR: --ckpt: ")
    assert "x.pth" in errors[0]
    assert fault in " ".join(errors)


def test_the_same_path_in_a_marker_is_a_failed_test(project, fault):
    marked(project, "model=V1, ckpt='x.pth'")
    result = project.runpytest()
    result.assert_outcomes(failed=1)
    assert fault in out(result)
    assert "Traceback" not in out(result)


def test_collect_only_opens_nothing(project):
    marked(project, "model=V1")
    result = project.runpytest("--collect-only", "-q", "--ckpt=none.pth")
    assert result.ret == 0
    assert "test_it.py::test_it[none.pth]" in out(result)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("3, model=V1", "takes keywords only"),
        ("model=V1, input=(3, 6)", "unknown argument input=: did you mean inputs=?"),
        ("inputs=(3, 6)", "model= is missing"),
        ("model=V1, device='gpu'", "is not a device"),
    ],
)
def test_a_wrong_marker_is_an_error_at_collection_that_names_it(project, arguments, text):
    marked(project, arguments)
    result = project.runpytest("--ckpt=v1.pth")
    result.assert_outcomes(errors=1)
    assert text in out(result)
    assert "test_it.py::test_it" in out(result)


@pytest.mark.parametrize(
    ("model", "told"), [("Broken", "the config has no 'width' (nets.py:"), ("Quits", "no GPU, bye")]
)
def test_a_model_that_raises_or_exits_is_a_failed_test_with_its_cause(project, model, told):
    marked(project, f"model={model}")
    result = project.runpytest("--ckpt=v1.pth")
    result.assert_outcomes(failed=1)
    assert told in out(result)


def test_a_tensor_left_on_the_cpu_passes_there_and_fails_in_rehearsal(project):
    marked(project, "model=Forgetful, inputs=(3, 6)")
    project.runpytest("--ckpt=v1.pth", "--ckpt-device=cpu").assert_outcomes(passed=1)
    result = project.runpytest("--ckpt=v1.pth")
    result.assert_outcomes(failed=1)
    text = " ".join(out(result).split())
    assert "forward-error" in text
    assert "Forgetful" in text
    assert "cuda:0" in text
    assert "cpu" in text


def test_cuda_can_be_required(project):
    marked(project, "model=V1, inputs=(3, 6)")
    result = project.runpytest("--ckpt=v1.pth", "--ckpt-require-cuda", "--ckpt-device=cpu")
    result.assert_outcomes(failed=1)
    assert "forward-no-cuda" in out(result)


def test_ckpt_gives_the_header(project):
    project.makepyfile(
        test_it="""
        def test_header(ckpt, ckpt_path):
            assert ckpt["head.weight"].shape == (4, 8)
            assert ckpt_path == "v1.pth"
    """
    )
    project.runpytest("--ckpt=v1.pth").assert_outcomes(passed=1)
    project.runpytest().assert_outcomes(skipped=1)


def test_ckpt_report_and_ckpt_model_without_the_marker_say_what_is_missing(project):
    project.makepyfile(test_it="def test_it(ckpt_model): ...")
    result = project.runpytest("--ckpt=v1.pth")
    assert "need @pytest.mark.ckpt_compat(model=...)" in out(result)
    assert result.ret == 1


def test_ckpt_check_gives_the_report(project):
    project.makepyfile(
        test_it="""
        from nets import V1, V2
        from pytest_ckptcompat import open_checkpoint

        def test_fits(ckpt_check):
            report = ckpt_check(V1, "v1.pth", inputs=(3, 6))
            assert report.ok and report.stages

        def test_opened(ckpt_check):
            assert ckpt_check(V1, open_checkpoint("v1.pth")).checkpoint == "v1.pth"

        def test_does_not_fit(ckpt_check):
            report = ckpt_check(V2, "v1.pth")
            assert not report.ok
            assert "does not fit nets.V2" in report.verdict

        def test_names_none(ckpt_check):
            ckpt_check(V2, None)

        def test_has_a_typing_error(ckpt_check):
            ckpt_check(V2, "v1.pth", receipe=3)

        def test_wants_it_to_fit(ckpt_check):
            report = ckpt_check(V2, "v1.pth")
            assert report.ok, report.verdict
    """
    )
    result = project.runpytest()
    result.assert_outcomes(passed=3, failed=3)
    assert "ckpt_check: unknown argument receipe=: did you mean recipe=?" in out(result)
    assert "During handling" not in out(result)
    assert "ckpt_check: no checkpoint: name one, or give --ckpt PATH" in out(result)
    assert "where False = <Report: v1.pth does not fit nets.V2: 2 mismatched" in out(result)
    assert re.search(r"shape-mismatch +head.weight +\(4, 8\) f32 +\(10, 8\) f32", out(result))
    assert "AssertionError: v1.pth does not fit nets.V2" in out(result)


def test_a_failing_report_of_ckpt_check_that_nobody_reads_fails_the_test(project):
    project.makepyfile(
        test_it="""
        from nets import V1, V2

        def test_it(ckpt_check):
            ckpt_check(V2, "v1.pth")
            ckpt_check(V1, "v1.pth")

        def test_body_went_wrong(ckpt_check):
            ckpt_check(V2, "v1.pth")
            raise KeyError("of the test itself")
    """
    )
    result = project.runpytest()
    result.assert_outcomes(failed=2)
    assert "v1.pth does not fit nets.V2: " in out(result)
    assert "Traceback" not in out(result)
    assert "KeyError: 'of the test itself'" in out(result)


def test_xfail_and_reruns_see_an_ordinary_failure(project):
    project.makepyfile(
        test_it="""
        import pytest
        from nets import V2

        @pytest.mark.xfail(reason="v2 is not released")
        @pytest.mark.ckpt_compat(model=V2)
        def test_body(): ...

        @pytest.mark.xfail(reason="v2 is not released")
        @pytest.mark.ckpt_compat(model=V2)
        def test_fixture(ckpt_model): ...
    """
    )
    project.runpytest("--ckpt=v1.pth").assert_outcomes(xfailed=2)


def test_a_marked_class_and_a_marked_unittest(project):
    project.makepyfile(
        test_it="""
        import unittest
        import pytest
        from nets import V1, V2

        @pytest.mark.ckpt_compat(model=V1)
        class TestIt:
            def test_one(self): ...
            def test_two(self, ckpt_report): assert ckpt_report.ok

        class CheckArguments(unittest.TestCase):
            @pytest.mark.ckpt_compat(model=V2)
            def test_three(self): ...
    """
    )
    project.runpytest("--ckpt=v1.pth").assert_outcomes(passed=2, failed=1)


def test_reports_of_the_whole_run(project):
    marked(project, "model=V2", "ckpt_model")
    project.makepyfile(
        test_other="""
        import pytest
        from nets import V1
        @pytest.mark.ckpt_compat(model=V1, inputs=(3, 6))
        def test_fits(): ...
    """
    )
    (project.path / "old.md").write_text("before\n")
    project.runpytest(
        "--ckpt=v1.pth",
        "--ckpt-report=json:r.json",
        "--ckpt-report=markdown:old.md",
        "--ckpt-report=html:r.html",
    )
    content = json.loads((project.path / "r.json").read_text())
    assert content["schema_version"] == 1
    checks = {check["nodeid"]: check for check in content["checks"]}
    assert set(checks) == {"test_it.py::test_it[v1.pth]", "test_other.py::test_fits[v1.pth]"}
    failed = checks["test_it.py::test_it[v1.pth]"]
    assert failed["mismatched"][0] == {"key": "head.weight", "checkpoint": [4, 8], "model": [10, 8]}
    assert failed["suggestion"]["python"] == 'Recipe(tile("head.*", dim=0))'
    assert checks["test_other.py::test_fits[v1.pth]"]["ok"] is True
    markdown = (project.path / "old.md").read_text()
    assert markdown.startswith("before\n")
    assert "does not fit" in markdown
    assert "</html>" in (project.path / "r.html").read_text()


def test_workers_do_what_one_process_does(project):
    """Several marks, fixtures, and a gate that testpaths leaves out: every word of the reports is the same."""
    project.makeini("[pytest]\ntestpaths = tests\npythonpath = .\n")
    for version in (2, 10, 9, 1):
        (project.path / f"r{version}.pth").write_bytes((project.path / "v1.pth").read_bytes())
    (project.path / "ckptcompat.toml").write_text('[[check]]\nckpt = "r*.pth"\nmodel = "nets:V1"\n')
    (project.mkdir("tests") / "test_it.py").write_text(
        f"""
import pytest
import pytest_ckptcompat as cc
from nets import V1, V2

@pytest.mark.ckpt_compat(model=V2, inputs=(3, 6))
@pytest.mark.ckpt_compat(model=V1, ckpt="r2.pth", inputs=(3, 6))
def test_two(ckpt_path, ckpt_report):
    assert ckpt_report.checkpoint == ckpt_path

@pytest.mark.ckpt_compat({GROW})
def test_grown(ckpt_model):
    assert ckpt_model.head.out_features == 10 and not ckpt_model.training
"""
    )
    said, checks = [], []
    for workers in ([], ["-n0"], ["-n2"]):
        result = project.runpytest(
            "--ckpt=v1.pth", "--ckpt-device=cpu", "--ckpt-report=json:r.json", *workers
        )
        result.assert_outcomes(passed=6, failed=1)
        lines = out(result).partition("= FAILURES =")[2].splitlines()[:-1]
        said.append(sorted(line for line in lines if not line.startswith("[gw")))
        checks.append(json.loads((project.path / "r.json").read_text())["checks"])
    assert said[0] == said[1] == said[2]
    assert checks[0] == checks[1]
    gate = [f"ckptcompat.toml::check-1[r{version}.pth]" for version in (1, 2, 9, 10)]
    assert [check["nodeid"] for check in checks[2]][:4] == gate  # whatever came first
    assert checks[2] == checks[0][3:] + sorted(checks[0][:3], key=lambda check: check["nodeid"])


def test_an_empty_path_is_no_checkpoint_and_is_refused_at_once(project):
    marked(project, "model=V1")
    for option in ("--ckpt=", "--ckpt= "):
        result = project.runpytest("--ckpt=v1.pth", option)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert "ERROR: --ckpt is empty: name a checkpoint, or leave it out" in "\n".join(result.errlines)
    (project.path / "pyproject.toml").write_text('[tool.pytest.ini_options]\nckpt = [""]\n')
    result = project.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: the ini key ckpt is empty" in "\n".join(result.errlines)


@pytest.mark.parametrize(
    "option",
    [
        "xml:r",
        "json",
        "json:",
        "json:v1.pth/r.json",
        "json:.",
        "json:-",
        "json:/dev/null",
        "markdown:v1.pth",
        "json:twice",
        f"json:{'x' * 300}",
    ],
)
def test_a_report_that_cant_be_written_is_refused_at_once(project, option):
    result = project.runpytest("--ckpt-report=html:twice", f"--ckpt-report={option}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--ckpt-report" in "\n".join(result.errlines)


def test_a_report_that_cant_be_written_in_the_end_fails_the_run(project):
    marked(project, "model=V1", body="open('out', 'w').close()")
    result = project.runpytest("--ckpt=v1.pth", "--ckpt-report=json:out/r.json")
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "ERROR: --ckpt-report json:" in out(result)


def test_an_interrupted_run_says_so_in_its_reports(project):
    project.makepyfile(
        test_it="""
        import pytest
        from nets import V1
        mark = pytest.mark.ckpt_compat(model=V1, ckpt="v1.pth")
        @mark
        def test_first(): ...
        @mark
        def test_second(): raise KeyboardInterrupt
        @mark
        def test_third(): ...
    """
    )
    reports = [f"--ckpt-report={kind}:r.{kind}" for kind in ("json", "markdown", "html")]
    result = project.runpytest(*reports, no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    content = json.loads((project.path / "r.json").read_text())
    assert content["interrupted"] is True
    assert [check["nodeid"] for check in content["checks"]] == ["test_it.py::test_first[v1.pth]"]
    assert [each["reason"] for each in content["unchecked"]] == ["not run", "not run"]
    told = "interrupted: 1 of 3 checks passed; 2 not run"
    assert told in out(result)
    assert told in (project.path / "r.markdown").read_text()
    assert told in (project.path / "r.html").read_text()


def test_the_folder_of_a_report_is_made(project):
    marked(project, "model=V1")
    reports = [f"--ckpt-report={kind}:out/new/r.{kind}" for kind in ("json", "markdown", "html")]
    project.runpytest("--ckpt=v1.pth", *reports).assert_outcomes(passed=1)
    assert json.loads((project.path / "out/new/r.json").read_text())["checks"][0]["ok"] is True
    assert len(list((project.path / "out/new").iterdir())) == 3


def test_the_report_hook(project):
    marked(project, "model=V1")
    project.makeconftest(
        """
        def pytest_ckptcompat_report(report):
            print("hooked:", report.verdict)
    """
    )
    result = project.runpytest("--ckpt=v1.pth", "-s")
    assert "hooked: v1.pth fits nets.V1" in out(result)


def test_the_plugin_can_be_turned_off(project):
    project.makepyfile(test_it="def test_it(): ...")
    project.runpytest("-p", "no:ckptcompat").assert_outcomes(passed=1)
