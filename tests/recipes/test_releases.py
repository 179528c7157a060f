"""Releases: recognised by their header, upgraded step by step, refused where they can't be told apart."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import pytest
import torch

from pytest_ckptcompat import Recipe, RecipeError, Release, Releases, append, rename, tile
from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint
from pytest_ckptcompat.checkpoint.lock_writer import lock_of_checkpoint, write_lock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    State = OrderedDict[str, torch.Tensor]


def v1(outputs: int = 4) -> State:
    generator = torch.Generator().manual_seed(outputs)
    shapes = {"body.weight": (8, 6), "out.weight": (outputs, 8), "out.bias": (outputs,)}
    return OrderedDict((key, torch.randn(shape, generator=generator)) for key, shape in shapes.items())


def v2() -> State:
    return v1(10)


def v3() -> State:
    return OrderedDict((key.replace("body.", "trunk."), value) for key, value in v1(14).items())


GROW = Recipe(tile("out.*", dim=0))
MOVE = Recipe(append("out.*", dim=0, init="zeros"), rename("body.*", "trunk.*"))


@pytest.fixture
def lock(tmp_path: Path) -> Callable[[str, State], str]:
    def made(name: str, state: State) -> str:
        path = tmp_path / "locks" / f"{name}.ckpt.json"
        path.parent.mkdir(exist_ok=True)
        torch.save(state, tmp_path / f"{name}.pth")
        write_lock(str(path), lock_of_checkpoint(open_checkpoint(tmp_path / f"{name}.pth"), str(path)))
        return str(path)

    return made


@pytest.fixture
def releases(lock: Callable[[str, State], str]) -> Releases:
    return Releases(
        Release("v1", lock("v1", v1()), GROW),
        Release("v2", lock("v2", v2()), MOVE),
        Release("v3", lock("v3", v3())),
    )


@pytest.fixture
def file(releases: Releases, tmp_path: Path) -> Path:
    text = releases.to_toml().replace(f"{tmp_path}/", "")
    (tmp_path / "releases.toml").write_text(text)
    return tmp_path / "releases.toml"


def by_hand(state: State, start: int) -> State:
    if start < 2:
        state = GROW.apply(state, v2())
    if start < 3:
        state = MOVE.apply(state, v3())
    return state


@pytest.mark.parametrize(("start", "make"), [(1, v1), (2, v2), (3, v3)])
def test_a_state_dict_of_any_release_becomes_today_s_as_by_hand(
    releases: Releases, start: int, make: Callable[[], State]
) -> None:
    upgraded = releases.apply(make(), v3())
    expected = by_hand(make(), start)
    assert list(upgraded) == list(expected)
    assert all(torch.equal(upgraded[key], value) for key, value in expected.items())
    assert releases.release_of(make()).name == f"v{start}"


def test_what_was_touched_and_where_it_came_from_goes_through_all_steps(releases: Releases) -> None:
    applied = releases.run(v1(), v3())
    assert applied.touched["out.weight"] == (GROW.operators[0], MOVE.operators[0])
    assert applied.origin["trunk.weight"] == "body.weight"
    assert "trunk.weight" not in applied.touched


def test_other_dtypes_are_of_the_release_all_the_same(releases: Releases) -> None:
    half = OrderedDict((key, value.half()) for key, value in v2().items())
    release = releases.release_of(half)
    assert release.name == "v2"
    assert release.table.other_dtypes(half) == "body.weight, out.bias, out.weight float16, not float32"
    assert release.table.other_dtypes(v2()) == ""


def test_a_state_dict_of_no_release_names_the_nearest_and_the_differences(releases: Releases) -> None:
    state = v2() | {"out.bias": torch.zeros(11), "extra.0.w": torch.zeros(1), "extra.1.w": torch.zeros(1)}
    del state["out.weight"]
    with pytest.raises(RecipeError) as raised:
        releases.apply(state, v3())
    assert raised.value.rule == "release-unknown"
    assert str(raised.value) == (
        "no release has these keys and shapes; the nearest is v2: 1 missing (out.weight); "
        "2 unexpected (extra.{0,1}.w); 1 mismatched (out.bias (11,), not (10,))"
    )


def test_a_recipe_that_does_not_lead_to_the_next_release(lock: Callable[[str, State], str]) -> None:
    wrong = Releases(
        Release("v1", lock("v1", v1()), Recipe(tile("out.weight", dim=0))),
        Release("v2", lock("v2", v2())),
    )
    with pytest.raises(
        RecipeError, match=r"the recipe of release v1 does not give v2: 1 mismatched \(out.bias"
    ) as raised:
        wrong.apply(v1(), v2())
    assert raised.value.rule == "release-step"


def test_a_recipe_that_does_not_apply_names_its_release(lock: Callable[[str, State], str]) -> None:
    wrong = Releases(
        Release("v1", lock("v1", v1()), Recipe(tile("out.*", dim=7))), Release("v2", lock("v2", v2()))
    )
    with pytest.raises(RecipeError, match=r"the recipe of release v1: tile\(.*no dimension 7"):
        wrong.apply(v1(), v2())


def test_the_file_is_what_the_releases_write(releases: Releases, file: Path) -> None:
    loaded = Recipe.load(file)
    assert isinstance(loaded, Releases)
    assert loaded == releases
    assert hash(loaded) == hash(releases)
    assert eval(repr(loaded)) == loaded
    assert Recipe.load(str(file)).to_toml() == releases.to_toml()


def test_two_releases_of_one_header_are_refused_with_their_names(lock: Callable[[str, State], str]) -> None:
    with pytest.raises(RecipeError, match="'v1' and 'again' have the same keys and shapes"):
        Releases(Release("v1", lock("v1", v1())), Release("again", lock("again", v1())))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("release = []", "there is no release"),
        ("release = 3", "write [[release]]"),
        ("[[release]]\nname = 'v1'", "release 1: lock is missing"),
        ("[[release]]\nlock = 'a.json'", "release 1: name is missing"),
        ("[[release]]\nname = 'v 1'\nlock = 'a.json'", "'v 1' is not a name of a release"),
        ("[[release]]\nname = '-v'\nlock = 'a.json'", "'-v' is not a name of a release"),
        ("[[release]]\nname = 'today'\nlock = 'a.json'", "'today' is not a name of a release"),
        ("[[release]]\nname = 1\nlock = 'a.json'", "'1' is not a name of a release"),
        ("[[release]]\nname = 'v1'\nlock = 'a.json'\nmodel = 'x'", "release 1: unknown 'model'"),
        ("[[release]]\nname = 'v1'\nlock = '../a.json'", "lock='../a.json' is not a file in the folder"),
        ("[[release]]\nname = 'v1'\nlock = '/a.json'", "lock='/a.json' is not a file in the folder"),
        (
            "[[release]]\nname = 'v1'\nlock = 's3://b/a.json'",
            "lock='s3://b/a.json' is not a file in the folder",
        ),
        ("[[release]]\nname = 'v1'\nlock = 3", "lock='3' is not a file in the folder"),
        (
            "[[release]]\nname = 'v1'\nlock = 'a.json'\n[[recipe]]\nop = 'tile'",
            "unknown 'recipe': a releases file",
        ),
        ("[[release]]\nname = 'v1'\nlock = 'none.json'", "release 'v1': "),
        ("[[release]]\nname = 'v1'\nlock = 'v1.pth'", "v1.pth is not a lock file"),
        ("[[release]]\nname = 'v1'\nlock = 'half.json'", "half.json: a damaged lock file"),
        (
            "[[release]]\nname = 'v1'\nlock = 'locks/v1.ckpt.json'\n[[release]]\nname = 'v1'\nlock = 'b.json'",
            "two releases called 'v1'",
        ),
        (
            "[[release]]\nname = 'v1'\nlock = 'locks/v1.ckpt.json'\n[[release.recipe]]\nop = 'tile'\nkey = 'a'\ndim = 0",
            "release 'v1' is the last",
        ),
        (
            "[[release]]\nname = 'v1'\nlock = 'locks/v1.ckpt.json'\n[[release.recipe]]\nop = 'tyle'",
            "release 'v1': operator 1 of the recipe: unknown op 'tyle': did you mean 'tile'?",
        ),
    ],
)
def test_an_ill_formed_file_is_one_clear_error(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    (file.parent / "half.json").write_bytes((file.parent / "locks" / "v1.ckpt.json").read_bytes()[:90])
    with pytest.raises(RecipeError) as raised:
        Recipe.load(file)
    assert said in str(raised.value)
    assert str(raised.value).startswith(f"{file}: ")


def test_what_is_no_release_is_refused_in_python() -> None:
    with pytest.raises(RecipeError, match="takes Release"):
        Releases(GROW)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="there is no release"):
        Releases()
