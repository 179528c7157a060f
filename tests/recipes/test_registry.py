"""Operators of others in recipe files."""

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from pytest_ckptcompat import Operator
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.hooks import forget, use
from pytest_ckptcompat.recipes import registry as extensions
from pytest_ckptcompat.recipes.operators.tile import tile
from pytest_ckptcompat.recipes.recipe import Recipe

OPERATORS = """
    from dataclasses import dataclass

    from pytest_ckptcompat import tile

    @dataclass(frozen=True, repr=False)
    class twice(tile):
        \"\"\"A house's own word.\"\"\"
"""
CONFTEST = """
    import pytest

    @pytest.hookimpl(optionalhook=True)
    def pytest_ckptcompat_operators():
        from house import twice

        return [twice]
"""
CHECK = """
    [[check]]
    name = "grown"
    model = "nets:V2"
      [[check.recipe]]
      op = "twice"
      key = "head.*"
      dim = 0
"""


def test_a_conftest_adds_an_operator(project):
    project.makepyfile(house=OPERATORS, conftest=CONFTEST)
    project.makefile(".toml", ckptcompat=CHECK)
    project.runpytest("--ckpt=v1.pth").assert_outcomes(passed=1)


def test_an_installed_package_adds_an_operator(project):
    """Through its entry point, for pytest and for the command alike."""
    project.makepyfile(house=OPERATORS, addition=CONFTEST)
    info = project.path / "addition-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: addition\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pytest_ckptcompat]\naddition = addition\n")
    (project.path / "grow.toml").write_text('[[recipe]]\nop = "twice"\nkey = "head.*"\ndim = 0\n')
    command = [sys.executable, "-m", "pytest_ckptcompat", "check", "v1.pth", "nets:V2", "--recipe=grow.toml"]
    result = project.run(*command, "--device=none")
    assert (result.ret, result.stderr.str()) == (0, "")


@pytest.fixture
def hook():
    """A hook as pytest has it, whose plugins give what a test says."""
    relay = SimpleNamespace(given=[], pytest_ckptcompat_operators=lambda: relay.given)
    use(relay)
    yield relay
    forget(relay)


def test_operators_that_come_with_the_plugin_can_not_be_replaced(hook):
    other = type("tile", (tile,), {})
    hook.given = [[other]]
    assert extensions.operator("tile") is extensions.operators()["tile"] is tile


def test_a_hook_that_gives_something_else(hook):
    hook.given = [[dict]]
    with pytest.raises(RecipeError, match="which is not an Operator class"):
        Recipe.from_toml('[[recipe]]\nop = "twice"')


def test_a_hook_is_forgotten_after_the_run(hook):
    hook.given = [[type("twice", (tile,), {})]]
    assert "twice" in extensions.operators()
    forget(hook)
    assert "twice" not in extensions.operators()


@dataclass(frozen=True, repr=False)
class planless(Operator):  # noqa: N801
    """Lacks what makes it one."""

    key: str


@dataclass(frozen=True, repr=False)
class careless(Operator):  # noqa: N801
    """Raises what nobody expects."""

    key: str

    def plan(self, state, target):
        return state[self.key + "?"]


def test_an_operator_of_others_that_lacks_its_plan_or_raises_is_told_in_one_line():
    with pytest.raises(
        RecipeError, match=r"operator 'planless' of test_registry lacks a method: define planless.plan"
    ):
        Recipe(planless("a")).apply({"a": torch.zeros(1)}, {})
    with pytest.raises(
        RecipeError, match=r"careless\(\"a\"\): its plan raised KeyError: 'a\?' \(test_registry.py:\d+\)"
    ):
        Recipe(careless("a")).apply({"a": torch.zeros(1)}, {})


def test_a_hook_that_fails_is_told():
    class Hook:
        def pytest_ckptcompat_operators(self):
            raise ValueError("no network")

    hook = Hook()
    use(hook)
    try:
        with pytest.raises(
            RecipeError, match="a hook pytest_ckptcompat_operators failed: ValueError: no network"
        ):
            Recipe.from_toml('[[recipe]]\nop = "nowhere"\n')
    finally:
        forget(hook)
