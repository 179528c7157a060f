"""``ckptcompat.toml``: the gate without a line of test code."""

import json
import tomllib
from pathlib import Path

import pytest
from readme import ROOT, block

import pytest_ckptcompat
from pytest_ckptcompat.plugin.toml_file import _declared

CHECK = """
[[check]]
name = "grown"
ckpt = "v1.pth"
model = "nets:V2"
source_model = "nets:V1"
inputs = ["3x6"]
  [[check.recipe]]
  op = "tile"
  key = "head.*"
  dim = 0
"""


def toml(project, text):
    (project.path / "ckptcompat.toml").write_text(text)


def out(result):
    return "\n".join(result.outlines)


def test_a_check_is_a_test(project):
    toml(project, CHECK)
    result = project.runpytest("-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["ckptcompat.toml::grown PASSED*", "  verified: untouched*"])


def test_one_that_does_not_fit_fails_with_the_report(project):
    toml(project, CHECK.replace("V2", "V2", 1).split("  [[check.recipe]]")[0])
    result = project.runpytest()
    result.assert_outcomes(failed=1)
    assert "v1.pth does not fit nets.V2: 2 mismatched" in out(result)
    assert "shape-mismatch  head.weight" in out(result)
    assert "Traceback" not in out(result)


def test_every_ckpt_in_turn_where_none_is_named(project):
    toml(project, CHECK.replace('ckpt = "v1.pth"\n', ""))
    (project.path / "b.pth").write_bytes((project.path / "v1.pth").read_bytes())
    result = project.runpytest("-v", "--ckpt=*.pth")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["ckptcompat.toml::grown[[]b.pth[]] *", "ckptcompat.toml::grown[[]v1.pth[]] *"]
    )
    project.runpytest().assert_outcomes(skipped=1)
    project.runpytest("--ckpt-required").assert_outcomes(failed=1)


def test_a_glob_of_released_versions(project):
    toml(project, CHECK.replace('"v1.pth"', '"v*.pth"'))
    (project.path / "v2.pth").write_bytes((project.path / "v1.pth").read_bytes())
    result = project.runpytest("-v")
    result.assert_outcomes(passed=2)
    assert "ckptcompat.toml::grown[v2.pth]" in out(result)


def test_waivers_and_a_recipe_file(project):
    import torch

    state = torch.load(project.path / "v1.pth", weights_only=True)
    state["aux.weight"] = torch.zeros(2)
    torch.save(state, project.path / "v1.pth")
    (project.path / "grow.toml").write_text('[[recipe]]\nop = "tile"\nkey = "head.*"\ndim = 0\n')
    text = CHECK.split("  [[check.recipe]]")[0] + 'recipe = "grow.toml"\n'
    waiver = (
        '[[check.allow]]\nrule = "unexpected-key"\nkey = "aux.*"\nreason = "dropped"\nuntil = 2099-01-01\n'
    )
    toml(project, text)
    project.runpytest().assert_outcomes(failed=1)
    toml(project, text + waiver)
    project.runpytest().assert_outcomes(passed=1)
    toml(project, text + waiver.replace("2099", "2001"))
    result = project.runpytest()
    result.assert_outcomes(failed=1)
    assert "waiver-expired" in out(result)


def test_the_model_is_importable_from_beside_the_file(project):
    (project.path / "deep").mkdir()
    (project.path / "nets.py").rename(project.path / "deep/beside.py")
    (project.path / "v1.pth").rename(project.path / "deep/v1.pth")
    (project.path / "deep/ckptcompat.toml").write_text(CHECK.replace("nets:", "beside:"))
    project.runpytest().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[check]", "ckptcompat.toml: not valid TOML: Expected"),
        ("[check]\nmodel = 'nets:V1'", "write [[check]]"),
        ("[[checks]]\nmodel = 'nets:V1'", "unknown 'checks'"),
        (
            "\n\n[[check]]\nmodel = 'nets:V1'\ninput = '3x6'",
            "ckptcompat.toml:5: [[check]]: unknown argument input=",
        ),
        ("[[check]]\nname = 'a'", "model= is missing"),
        ("[[check]]\nmodel = 'nets.V1'", "Use 'package.module:name'"),
        (
            "[[check]]\nmodel = 'nets:V1'\noptimizer = 'Adam'",
            "toml:3: [[check]]: optimizer='Adam': write 'torch.optim:Adam'",
        ),
        ("[[check]]\nckpt = ''\nmodel = 'nets:V1'", "toml:2: [[check]]: ckpt= is empty: name a checkpoint"),
        ("[[check]]\nname = 3\nmodel = 'nets:V1'", "name wants a text"),
        ("[[check]]\nname = 'a'\nmodel = 'nets:V1'\n" * 2, "two checks called 'a'"),
        ("[[check]]\nmodel = 'nets:V1'\n[[check.recipe]]\nop = 'tiles'\nkey = 'a'", "did you mean 'tile'?"),
        ("[[check]]\nmodel = 'nets:V1'\n[check.recipe]\nop = 'tile'", "recipe"),
        ("[[check]]\nmodel = 'nets:V1'\n[[check.allow]]\nrule = 'missing-key'", "at least rule and reason"),
        (
            "[[check]]\nmodel = 'nets:V1'\n[[check.allow]]\nrules = 'missing-key'",
            "toml:4: [[check.allow]]: allow: unknown 'rules': did you mean 'rule'?",
        ),
        ("# nothing yet", "ckptcompat.toml: there is no [[check]], so nothing would be checked"),
        ('[[check]]\nmodel = "nets:V1"\nname = "a\\nb"', "toml:3: [[check]]: name wants a text of one line"),
        (
            "[[check]]\nmodel = 'nets:V1'\n\n[[recipe]]\nop = 'tile'",
            "toml:4: unknown 'recipe': write [[check.recipe]]",
        ),
        ("[[check]]\nmodel = 'nets:V1'\n[other]\nx = 1", "toml:3: unknown 'other'"),
        ("stray = 1\n[[check]]\nmodel = 'nets:V1'", "toml:1: unknown 'stray'"),
        (
            "[[check]]\nmodel = 'nets:V1'\n[[check.recipe]]\nop = 'tile'\nkey = 'a'\ndim = 0\n"
            "[[check.recipe]]\nop = 'tile'\n# note\nkeys = 'b'\ndim = 0",
            "toml:10: [[check.recipe]]: tile: unknown 'keys': did you mean 'key'?",
        ),
        (
            "[[check]]\nmodel = 'nets:V1'\n[[check]]\nname = 'b'\nmodel = 'nets:V1'\n"
            "[[check.allow]]\nrule = 'missing-key'\nkey = 3\nreason = 'r'",
            "toml:8: [[check.allow]]: allow: key wants a key or a glob, not 3",
        ),
        (
            "[[check]]\nmodel = 'nets:V1'\nrecipe = [\n  { op = 'tile', key = 'a', dim = 'x' }]",
            "toml:3: [[check.recipe]]: tile: dim wants a whole number",
        ),
        (
            '[[check]]\nmethod = """\n[[check]]\n"""\nmodel = \'nets:V1\'\nkey = 1',
            "toml:1: [[check]]: unknown argument key=",  # a heading inside a text: no line is better than a wrong one
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line(project, text, told):
    toml(project, text)
    result = project.runpytest("--ckpt=v1.pth")
    assert result.parseoutcomes()["errors"] == 1
    assert told in out(result)
    assert "ckptcompat.toml" in out(result)
    assert "INTERNALERROR" not in out(result)


def test_a_mark_of_the_byte_order_is_skipped_and_another_encoding_is_told(project):
    (project.path / "ckptcompat.toml").write_bytes(b"\xef\xbb\xbf" + CHECK.encode())
    project.runpytest("--ckpt-device=none").assert_outcomes(passed=1)
    (project.path / "ckptcompat.toml").write_bytes(CHECK.encode() + b"# \xe9")
    result = project.runpytest()
    result.assert_outcomes(errors=1)
    assert "ckptcompat.toml: not UTF-8 text: save it as UTF-8" in out(result)
    assert "Traceback" not in out(result)


def test_collecting_imports_no_model_and_opens_nothing(project):
    toml(project, CHECK.replace("nets:V2", "no_such_module:Net").replace("v1.pth", "none.pth"))
    result = project.runpytest("--collect-only", "-q")
    assert result.ret == 0
    assert "ckptcompat.toml::grown" in out(result)


def test_an_optimizer_is_named_too(project):
    project.makepyfile(
        training="""
        import torch
        def sgd(parameters):
            return torch.optim.SGD(parameters, lr=0.1)
    """
    )
    toml(project, CHECK.replace('inputs = ["3x6"]', 'inputs = ["3x6"]\noptimizer = "training:sgd"'))
    result = project.runpytest()
    result.assert_outcomes(passed=1)
    assert "optimizer-missing" in out(result)


# -- the schema for editors --------------------------------------------------------------------------------

SCHEMA = json.loads((Path(pytest_ckptcompat.__file__).parent / "ckptcompat.schema.json").read_text())


FIVE = block("gate: five lines")
SHOWN = [
    *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples").rglob("ckptcompat.toml"))),
    *(FIVE, FIVE + block("gate: recipe"), block("gate: releases"), CHECK),
]


@pytest.mark.parametrize("text", SHOWN)
def test_the_schema_takes_what_we_show(text):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(tomllib.loads(text), SCHEMA)


@pytest.mark.parametrize(
    "more",
    [
        'input = "3x6"', 'direction = "both"', 'device = "gpu"', 'model = "nets.V1"', "ckpt = 3", "protect = 3", 'optimizer = "Adam"',
        '[[check.recipe]]\nkey = "a"', '[[check.allow]]\nrule = "missing-key"',
        '[[check.allow]]\nrule = "missing-keys"\nreason = "r"',
        '[[check.allow]]\nrules = "missing-key"\nreason = "r"',
    ],
)  # fmt: skip
def test_the_schema_refuses_what_the_run_refuses(more):
    jsonschema = pytest.importorskip("jsonschema")
    model = "" if more.startswith("model") else 'model = "nets:V1"\n'
    content = tomllib.loads(f"[[check]]\n{model}{more}")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, SCHEMA)
    with pytest.raises(ValueError, match=r"\w"):
        _declared(content["check"][0], 0)


@pytest.mark.parametrize(
    ("testpaths", "arguments", "outcomes"),
    [
        ("tests", [], {"passed": 1, "failed": 1}),
        ("tests ckptcompat.toml", [], {"passed": 1, "failed": 1}),
        (".", [], {"passed": 1, "failed": 1}),
        ("tests", ["tests"], {"passed": 1}),
        ("tests", ["--ignore=ckptcompat.toml"], {"passed": 1}),
    ],
)
def test_the_gate_in_the_rootdir_is_run_by_a_plain_pytest(project, testpaths, arguments, outcomes):
    project.makeini(f"[pytest]\ntestpaths = {testpaths}\n")
    toml(project, CHECK.partition("  [[check.recipe]]")[0])
    (project.mkdir("tests") / "test_it.py").write_text("def test_it(): ...\n")
    project.runpytest(*arguments).assert_outcomes(**outcomes)
