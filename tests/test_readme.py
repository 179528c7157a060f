"""What the README says is so: its blocks are run or compared, its tables are those of the code."""

import re
import tomllib
from pathlib import Path

import pytest

import pytest_ckptcompat
from pytest_ckptcompat import Recipe, check
from pytest_ckptcompat.collect import _declared
from pytest_ckptcompat.operators import OPERATORS
from pytest_ckptcompat.rules import RULES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:<!-- (.*?) -->\n)?```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [text for _, language, text in BLOCKS if language == "python"]
TOML = [text for _, language, text in BLOCKS if language == "toml"]
REPORTS = {mark: text for mark, language, text in BLOCKS if language == "text"}


@pytest.fixture
def onet(monkeypatch):
    folder = ROOT / "examples" / "onet"
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))


def rules_table():
    rows = [f"| `{rule.id}` | {rule.severity} | {rule.meaning} |" for rule in RULES.values()]
    return "\n".join(["| rule | severity | meaning |", "| --- | --- | --- |", *rows])


def operators_table():
    rows = [f"| `{name}` | {kind.__doc__.splitlines()[0]} |" for name, kind in sorted(OPERATORS.items())]
    return "\n".join(["| operator | does |", "| --- | --- |", *rows]).replace("``", "`")


def test_the_table_of_rules():
    assert rules_table() in README


def test_the_table_of_operators():
    assert operators_table() in README


def test_every_option_is_listed(pytestconfig):
    options = [
        name
        for group in pytestconfig._parser._groups
        if group.name == "ckptcompat"
        for option in group.options
        for name in option.names()
    ]
    assert len(options) == 6
    assert all(f"| `{name}" in README for name in options)
    for key in ("ckpt", "ckpt_required", "ckpt_device", "ckpt_require_cuda", "ckpt_severity", "ckpt_limits"):
        assert f"`{key}`" in README


def test_the_failing_report(onet):
    from onet import Net

    report = check(Net, "net.pth", inputs=(2, 3, 48, 48))
    assert f"{report}\n" == REPORTS["report: failing"]


def test_the_passing_report(onet):
    from onet import Net, NetV1

    recipe = Recipe(pytest_ckptcompat.tile("out2.*", dim=0))
    report = check(Net, "net.pth", recipe=recipe, inputs=(2, 3, 48, 48), source_model=NetV1)
    shown = REPORTS["report: passing"]
    if "played by" not in str(report):  # on a card, or on a CPU-only build of torch, the last lines differ
        pytest.skip("another device")
    assert normal(f"{report}\n") == normal(shown)


def normal(text):
    """Without what hangs on the machine's arithmetic, and the spaces and line ends that follow from it."""
    return " ".join(re.sub(r"max \|Δ\| \S+", "max", text).replace("-", "").split())


def test_the_example_is_the_one_in_the_repository():
    ours = (ROOT / "examples/onet/test_onet.py").read_text(encoding="utf-8")
    for line in ('GROW_OUT2 = Recipe(tile("out2.*", dim=0))', "ckpt_model.out2.out_features == 14"):
        assert line in PYTHON[0]
        assert line in ours


@pytest.mark.parametrize("text", PYTHON[1:], ids=lambda text: text.splitlines()[0])
def test_python_runs(onet, text):
    exec(compile(text, "README.md", "exec"), {})


@pytest.mark.parametrize("text", TOML, ids=lambda text: text.splitlines()[0])
def test_toml_is_what_the_tool_takes(text):
    content = tomllib.loads(text)
    if "recipe" in content:
        assert Recipe.from_toml(text).to_toml().split() == text.split()
    for number, table in enumerate(content.get("check", [])):
        _declared(table, number)


def test_every_operator_is_a_public_name():
    assert set(OPERATORS) <= set(pytest_ckptcompat.__all__)
    for name in pytest_ckptcompat.__all__:
        assert getattr(pytest_ckptcompat, name) is not None
