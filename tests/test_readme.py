"""What the README says is so: its blocks are run or compared, its tables are those of the code."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from readme import BLOCKS, PAGES, ROOT, TEXT, block, commands, normal

import pytest_ckptcompat
from pytest_ckptcompat import Recipe, check
from pytest_ckptcompat.cli import main
from pytest_ckptcompat.cli.command import COMMANDS
from pytest_ckptcompat.core.rules import RULES
from pytest_ckptcompat.recipes.operators import OPERATORS


@pytest.fixture
def onet(monkeypatch):
    folder = ROOT / "examples" / "onet"
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "onet", raising=False)
    yield
    sys.modules.pop("onet", None)  # other tests edit copies of it


# -- blocks ------------------------------------------------------------------------------------------------


def test_no_block_is_left_out():
    """Each has a name, in the comment before it, and a test that asks for it by that name."""
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    names = [each.name for each in BLOCKS]
    assert "".join([TEXT, *PAGES.values()]).count("\n```") == 2 * len(BLOCKS)
    assert len(set(names)) == len(names)
    assert [name for name in names if f'block("{name}")' not in tests] == []


def test_the_quick_start(pytester, monkeypatch):
    """CI runs its two lines in a fresh environment; the run on the example is made here too."""
    first, second = commands(block("quick start"))
    ours = (ROOT / ".ci/run").read_text(encoding="utf-8")
    for line in (first, second):
        *_, installed, run = (step.split() for step in line.split(" && "))
        assert installed[:2] == [".venv/bin/pip", "install"]
        assert f"install --quiet {' '.join(installed[2:])}\n" in ours
        assert run[0] == ".venv/bin/pytest"
        assert re.search(rf"pytest\" -p no:cacheprovider {' '.join(run[1:])}", ours)
    *_, run = first.split(" && ")
    monkeypatch.chdir(ROOT)
    assert "1 of 1 checks passed" in pytester.runpytest(*shlex.split(run)[1:]).stdout.str()


def test_the_example_is_the_one_in_the_repository():
    ours = (ROOT / "examples/onet/test_onet.py").read_text(encoding="utf-8")
    for line in ('GROW_OUT2 = Recipe(tile("out2.*", dim=0))', "ckpt_model.out2.out_features == 14"):
        assert line in block("the example")
        assert line in ours


def test_the_example_passes(project):
    for name in ("onet.py", "net.pth"):
        (project.path / name).write_bytes((ROOT / "examples/onet" / name).read_bytes())
    project.makepyfile(test_example=block("the example"))
    project.runpytest("--ckpt=net.pth", "--ckpt-device=cpu").assert_outcomes(passed=1)


def test_the_fixtures(project):
    for name in ("onet.py", "net.pth"):
        (project.path / name).write_bytes((ROOT / "examples/onet" / name).read_bytes())
    project.makepyfile(test_fixtures=block("fixtures"))
    result = project.runpytest("--ckpt=net.pth", "--ckpt-device=cpu")
    result.assert_outcomes(passed=8)
    assert "7 of 7 checks passed" in result.stdout.str()


def test_the_contents_are_the_headings():
    listed = re.findall(r"\[([^\]]+)\]\(#([^)]+)\)", TEXT.partition("Contents:")[2].partition("\n\n")[0])
    heads = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    assert [name for name, _ in listed] == heads
    assert [anchor for _, anchor in listed] == [
        re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads
    ]


def test_the_table_of_exit_codes():
    rows = re.findall(r"^\| `(\w+)` \| .*\|$", TEXT.partition("| command | 0 | 1 | 2 |")[2], re.MULTILINE)
    assert rows == [command.__name__.rpartition(".")[2] for command in COMMANDS]
    for command in COMMANDS:
        name, codes = command.__name__.rpartition(".")[2], dict(re.findall(r"(\d) ([^,]+)", command.EXITS))
        assert f"| `{name}` | {' | '.join(codes.get(code, '') for code in '012')} |" in TEXT


def test_the_failing_report(onet):
    from onet import Net

    report = check(Net, "net.pth", inputs=(2, 3, 48, 48))
    assert f"{report}\n" == block("report: failing")


def test_the_passing_report(onet):
    from onet import Net, NetV1

    recipe = Recipe(pytest_ckptcompat.tile("out2.*", dim=0))
    report = check(Net, "net.pth", recipe=recipe, inputs=(2, 3, 48, 48), source_model=NetV1)
    if "simulated cuda:0" not in str(
        report
    ):  # on a card, or on a CPU-only build of torch, the last lines differ
        pytest.skip("another device")
    assert normal(f"{report}\n") == normal(block("report: passing"))


def test_the_commands(onet, tmp_path, monkeypatch, capsys):
    state = torch.load("net.pth", weights_only=True)
    torch.save({**state, "out2.bias": torch.zeros(14)}, tmp_path / "new.pth")
    torch.save(state, tmp_path / "net.pth")
    (tmp_path / "grow.toml").write_text(block("a recipe file"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    ended, said = {}, {}
    for line in commands(block("without pytest")):
        name, command, *rest = shlex.split(line)
        assert name == "ckptcompat"
        ended[command] = main([command, *rest])
        said[command] = capsys.readouterr().out
    assert ended == {"check": 0, "show": 0, "diff": 1, "apply": 0}
    assert "net.pth fits onet.Net with the recipe" in said["check"]
    assert "out2.bias" in said["diff"]
    assert torch.load("grown.pth", weights_only=True)["out2.weight"].shape == (14, 256)


def test_python_runs(onet):
    exec(compile(block("from Python"), "README.md", "exec"), {})


def test_a_recipe_file_is_what_a_recipe_writes():
    text = block("a recipe file")
    assert Recipe.from_toml(text).to_toml() == text
    assert Recipe.from_toml(text) == Recipe(pytest_ckptcompat.tile("out2.*", dim=0))


# -- tables ------------------------------------------------------------------------------------------------


def test_an_operator_of_one_s_own_is_proved(tmp_path):
    names = {"__name__": "readme"}
    exec(block("an operator"), names)
    flip = names["flip"]
    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "net.pth")
    arguments = {
        "recipe": pytest_ckptcompat.Recipe(flip("*")), "device": "cpu", "inputs": (2, 3),
        "source_model": lambda: torch.nn.Linear(3, 4),
    }  # fmt: skip
    report = pytest_ckptcompat.check(lambda: torch.nn.Linear(3, 4), tmp_path / "net.pth", **arguments)
    told = {promise.name: promise.status for promise in report.promises}
    assert report.ok, str(report)
    assert told['flip("*"): turned back, the old tensors'] == "kept"
    assert told["function kept"] == "changed"


def test_the_table_of_rules():
    rows = [
        f"| `{rule.id}` | {rule.severity} | {rule.meaning} | {rule.example} | {rule.remedy} |"
        for rule in RULES.values()
    ]
    head = ["| rule | severity | meaning | example | remedy |", "| --- | --- | --- | --- | --- |"]
    assert "\n".join([*head, *rows]) in PAGES["rules"]
    for severity, word in (("error", "Errors"), ("warn", "Warnings")):
        listed = re.search(rf"^{word}: (.*?)\.$", TEXT, re.DOTALL | re.MULTILINE)
        assert listed
        assert listed[1].replace("\n", " ") == ", ".join(
            f"`{rule.id}`" for rule in RULES.values() if rule.severity == severity
        )


def test_the_table_of_operators():
    rows = [
        f"| `{re.sub(', optim=.+?(?=[,)])', '', kind.signature())}` | {kind.__doc__.splitlines()[0]} |"
        for _, kind in sorted(OPERATORS.items())
    ]
    table = "\n".join(["| operator | does |", "| --- | --- |", *rows]).replace("``", "`")
    assert table in PAGES["operators"]


def test_every_option_is_listed(pytestconfig):
    options = [
        name
        for group in pytestconfig._parser._groups
        if group.name == "ckptcompat"
        for option in group.options
        for name in option.names()
    ]
    assert len(options) == 6
    assert all(f"| `{name}" in TEXT for name in options)
    for key in [key for key in pytestconfig._parser._inidict if key.startswith("ckpt")]:
        assert f"`{key}`" in TEXT


def test_every_operator_is_a_public_name():
    assert set(OPERATORS) <= set(pytest_ckptcompat.__all__)
    for name in pytest_ckptcompat.__all__:
        assert getattr(pytest_ckptcompat, name) is not None
