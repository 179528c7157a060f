"""Marks of a module, of classes, of a function and of parameters add up; none is dropped, and wrong ones are told."""

import json
from importlib import import_module

import pytest
import torch

from pytest_ckptcompat.plugin import checkpoints


@pytest.fixture
def project(project):
    """With a checkpoint of V2 too."""
    torch.save(import_module("nets").V2().state_dict(), project.path / "v2.pth")
    return project


def ran(project, test, *options):
    """The outcomes, and the checks by the test's name: (checkpoint, model, fits)."""
    head = "import pytest\nfrom pytest_ckptcompat import allow\nfrom nets import *\nmark = pytest.mark.ckpt_compat\n"
    (project.path / "test_it.py").write_text(head + test)
    result = project.runpytest("--ckpt-report=json:r.json", *options)
    checks = json.loads((project.path / "r.json").read_text())["checks"]
    found = {
        each["nodeid"].partition("::")[2]: (each["checkpoint"], each["model"], each["ok"]) for each in checks
    }
    return result, found


def test_several_marks_on_a_function_are_as_many_checks(project):
    test = """
@mark(model=V1, ckpt="v2.pth")
@mark(model=V1, ckpt="v1.pth")
def test_two(ckpt_path, ckpt_report):
    assert ckpt_report.checkpoint == ckpt_path
"""
    result, found = ran(project, test)
    result.assert_outcomes(passed=1, failed=1)
    assert found == {
        "test_two[v1.pth]": ("v1.pth", "nets.V1", True),
        "test_two[v2.pth]": ("v2.pth", "nets.V1", False),
    }


def test_module_bases_class_and_function_add_up_and_the_closest_wins(project):
    test = """
pytestmark = mark(model=V1, ckpt="v1.pth", inputs=(3, 6), device="cpu")

class Base:
    pytestmark = [mark(model=V2)]

@mark(ckpt="v2.pth")
class TestBoth(Base):
    def test_class(self): ...
    @mark(inputs=None)
    def test_function(self, ckpt_report):
        assert [s.detail for s in ckpt_report.stages if s.name == "forward"] == ["no inputs declared"]

def test_module(ckpt_report):
    assert [s.status for s in ckpt_report.stages if s.name == "forward"] == ["passed"]

@mark(ckpt=None)
def test_every_ckpt(): ...
"""
    result, found = ran(project, test)
    result.assert_outcomes(passed=3, skipped=1)
    assert found == {
        "TestBoth::test_class[v2.pth]": ("v2.pth", "nets.V2", True),
        "TestBoth::test_function[v2.pth]": ("v2.pth", "nets.V2", True),
        "test_module[v1.pth]": ("v1.pth", "nets.V1", True),
    }


def test_waivers_and_protected_keys_of_all_marks_are_joined(project):
    test = """
@mark(allow=allow("shape-mismatch", "head.weight", reason="grown"), protect="body.*")
class TestIt:
    @mark(model=V2, ckpt="v1.pth", allow=[allow("shape-mismatch", "head.bias", reason="grown")], protect=["head.*"])
    def test_it(self): ...
    @mark(model=V2, ckpt="v1.pth", allow=None)
    def test_half(self): ...
"""
    result, found = ran(project, test)
    result.assert_outcomes(passed=1, failed=1)
    assert found["TestIt::test_it[v1.pth]"][2] is True


def test_a_parameter_names_its_own_checkpoint(project):
    test = """
@pytest.mark.parametrize("outputs", [
    pytest.param(4, marks=mark(ckpt="v1.pth")),
    pytest.param(10, marks=mark(ckpt=["v1.pth", "v2.pth"], model=V2)),
])
@mark(model=V1)
def test_it(outputs, ckpt, ckpt_report):
    assert ckpt["head.bias"].shape == (outputs,)
"""
    result, found = ran(project, test)
    result.assert_outcomes(passed=2, failed=1)
    assert found == {
        "test_it[4-v1.pth]": ("v1.pth", "nets.V1", True),
        "test_it[10-v1.pth]": ("v1.pth", "nets.V2", False),
        "test_it[10-v2.pth]": ("v2.pth", "nets.V2", True),
    }


def test_parameters_with_and_without_marks_stand_beside_each_other(project):
    test = """
two = [mark(ckpt="v2.pth"), mark(ckpt="v1.pth", model=V2)]

@pytest.mark.parametrize("n", [1, pytest.param(2, marks=mark(ckpt="v2.pth")), pytest.param(3, marks=two)])
@mark(model=V1, ckpt="v1.pth")
def test_it(n): ...

@pytest.mark.parametrize("n", [1, pytest.param(2, marks=mark(model=V1, ckpt="v1.pth"))])
def test_one_of_two(n): ...

@pytest.mark.parametrize("n", [1, pytest.param(2, marks=mark(modle=V1))])
@mark(model=V1, ckpt="v1.pth")
def test_wrong(n): ...
"""
    result, found = ran(project, test, "--ckpt=v1.pth", "--ckpt=v2.pth")
    result.assert_outcomes(passed=4, failed=3, errors=1)
    assert found == {
        "test_it[1-v1.pth]": ("v1.pth", "nets.V1", True),
        "test_it[2-v2.pth]": ("v2.pth", "nets.V1", False),
        "test_it[3-v2.pth]": ("v2.pth", "nets.V1", False),
        "test_it[3-v1.pth]": ("v1.pth", "nets.V2", False),
        "test_one_of_two[2-v1.pth]": ("v1.pth", "nets.V1", True),
        "test_wrong[1-v1.pth]": ("v1.pth", "nets.V1", True),
    }


def test_a_test_keeps_the_checkpoint_and_the_case_of_its_collection(project):
    """Whatever tests before it make or delete."""
    (project.mkdir("tests") / "test_it.py").write_text(
        """
import pytest, shutil
from pathlib import Path
from nets import V1, V2

@pytest.fixture(scope="module", autouse=True)
def made():
    for name in ("late", "g1"):
        shutil.copy("v1.pth", f"tests/{name}.pth")
    Path("d1.pth").unlink()

@pytest.mark.ckpt_compat(model=V1, ckpt="late.pth")
def test_late(): ...

@pytest.mark.ckpt_compat(model=V2, ckpt=["d*.pth", "g*.pth"])
@pytest.mark.ckpt_compat(model=V1, ckpt=["d*.pth"])
def test_deleted(): ...
"""
    )
    for number in (1, 2):
        (project.path / f"d{number}.pth").write_bytes((project.path / "v1.pth").read_bytes())
    result = project.runpytest("--ckpt-report=json:r.json")
    result.assert_outcomes(passed=1, failed=5)
    checks = json.loads((project.path / "r.json").read_text())["checks"]
    told = {each["nodeid"].partition("::")[2]: (each["model"], each["verdict"]) for each in checks}
    assert told["test_deleted[d1.pth0]"] == ("V1", "d1.pth was not checked: it does not exist")
    assert told["test_deleted[d1.pth1]"] == ("V2", "d1.pth was not checked: it does not exist")
    assert told["test_deleted[d2.pth0]"] == ("nets.V1", "d2.pth fits nets.V1: 9 of 9 keys match")
    assert told["test_deleted[d2.pth1]"][1].startswith("d2.pth does not fit nets.V2: 2 mismatched")
    assert "g*.pth was not checked: it matches no file in " in told["test_deleted[g*.pth]"][1]
    assert "late.pth was not checked: it does not exist in " in told["test_late[late.pth]"][1]


def test_names_are_looked_for_once(project, monkeypatch):
    for number in range(20):
        (project.path / f"n{number}.pth").write_bytes((project.path / "v1.pth").read_bytes())
    looked = []
    glob = checkpoints.glob.glob
    monkeypatch.setattr(
        checkpoints.glob, "glob", lambda *given, **more: looked.append(given) or glob(*given, **more)
    )
    result, _ = ran(project, '@mark(model=V1, ckpt="n*.pth")\ndef test_it(): ...\n')
    result.assert_outcomes(passed=20)
    assert len(looked) == 1


def test_a_unittest_has_no_parameters_and_makes_all_its_checks(project):
    test = """
import unittest

class Case(unittest.TestCase):
    @mark(model=V1, ckpt="v1.pth")
    @mark(model=V1, ckpt="v2.pth")
    @mark(model=V2, ckpt="v1.pth")
    def test_it(self): ...
"""
    result, _ = ran(project, test)
    result.assert_outcomes(failed=1)
    checks = json.loads((project.path / "r.json").read_text())["checks"]
    assert [(each["checkpoint"], each["ok"]) for each in checks] == [
        ("v1.pth", False), ("v2.pth", False), ("v1.pth", True),
    ]  # fmt: skip
    text = "\n".join(result.outlines)
    assert "v2.pth does not fit nets.V1" in text
    assert "v1.pth does not fit nets.V2" in text


def test_a_mark_that_is_added_to_a_test_adds_up_too(project):
    project.makeconftest("""
        import pytest
        def pytest_collection_modifyitems(items):
            for item in items:
                item.add_marker(pytest.mark.ckpt_compat(inputs=(3, 6), device="cpu"))
    """)
    test = """
@mark(model=V1, ckpt="v1.pth")
def test_it(ckpt_report):
    assert [s.status for s in ckpt_report.stages if s.name == "forward"] == ["passed"]
"""
    result, _ = ran(project, test)
    result.assert_outcomes(passed=1)


def test_of_several_checks_those_without_a_checkpoint_are_not_dropped(project):
    test = """
@mark(model=V1)
@mark(model=V1, ckpt="v1.pth")
def test_it(): ...
"""
    result, _ = ran(project, test)
    result.assert_outcomes(passed=1, skipped=1)
    assert "1 of 2 checks passed; 1 skipped: no checkpoint" in "\n".join(result.outlines)


WRONG = """
@mark(model=V1, ckpt="v1.pth", recpie=1)
def test_typo(): ...

@mark(ckpt="v1.pth")
def test_without_a_model(): ...

@pytest.fixture
def net(): ...

@mark(model=net, ckpt="v1.pth")
def test_fixture(): ...

@mark(model=V1, ckpt="v1.pth")
def test_right(): ...

def test_unmarked(): ...

class Lenient(V1):
    def __init__(self, *given):
        super().__init__()

@mark(Lenient)
def test_positional(): ...
"""


def test_wrong_marks_are_all_told_with_their_lines_and_stop_their_own_tests_alone(project):
    result, found = ran(project, WRONG, "-W", "ignore")
    result.assert_outcomes(passed=2, errors=4)
    text = "\n".join(result.outlines)
    assert "test_it.py:6: @pytest.mark.ckpt_compat: unknown argument recpie=: did you mean recipe=?" in text
    assert "test_it.py:9: @pytest.mark.ckpt_compat: model= is missing" in text
    assert "test_it.py:15: @pytest.mark.ckpt_compat: model= is the fixture 'net'" in text
    assert "marks the class Lenient, not the test: write model=Lenient" in text
    assert "During handling" not in text
    assert found == {"test_right[v1.pth]": ("v1.pth", "nets.V1", True)}
    assert "1 of 5 checks passed; 4 failed before the check" in text
    unchecked = json.loads((project.path / "r.json").read_text())["unchecked"]
    assert {"nodeid": "test_it.py::test_typo", "reason": "failed before the check"} in unchecked


def test_a_relative_path_means_the_same_from_every_folder(project, monkeypatch):
    deep = project.mkdir("tests") / "deep"
    (deep / "ck").mkdir(parents=True)
    (project.path / "ck").mkdir()
    (project.path / "v1.pth").rename(project.path / "ck/net.pth")
    (project.path / "v2.pth").rename(deep / "ck/net.pth")
    (project.path / "pytest.ini").write_text("[pytest]\n")
    test = "import pytest\nfrom nets import *\n"
    for name in ("net", "other"):
        test += f"@pytest.mark.ckpt_compat(model=V1, ckpt='ck/{name}.pth')\ndef test_{name}(): ...\n"
    (deep / "test_it.py").write_text(test)
    for folder in (project.path, deep):
        monkeypatch.chdir(folder)
        result = project.runpytest("--rootdir", project.path, "-c", project.path / "pytest.ini", deep)
        result.assert_outcomes(passed=1, failed=1)
        told = f"ck/other.pth was not checked: it does not exist in {project.path} or in "
        assert told in " ".join("\n".join(result.outlines).split())
