from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Boxes, Words, settle
from torch import nn

from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.recipes.operators import OPERATORS
from pytest_ckptcompat.recipes.operators.append import append
from pytest_ckptcompat.recipes.operators.rename import add_prefix, drop, rename, strip_prefix
from pytest_ckptcompat.recipes.operators.select import select
from pytest_ckptcompat.recipes.operators.tile import tile
from pytest_ckptcompat.recipes.operators.values import cast, scale
from pytest_ckptcompat.recipes.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

GROW = Recipe(tile("out2.*", dim=0))


def boxes(out2: int = 4) -> OrderedDict[str, Any]:
    return settle(Boxes(out2)).state_dict()


# -- state dicts of any kind, left as they are ---------------------------------------------------------------


class Counted(torch.Tensor):
    """A tensor that counts the operations which need its values."""

    reads = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in ("__get__", "dim", "size", "stride", "storage_offset"):
            cls.reads += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def test_values_that_do_not_change_are_not_looked_at() -> None:
    old = OrderedDict((key, value.as_subclass(Counted)) for key, value in boxes().items())
    old["out2.weight"], old["out2.bias"] = (boxes()[key] for key in ("out2.weight", "out2.bias"))
    Counted.reads = 0
    new = Recipe(tile("out2.*", dim=0), rename("out1.*", "first.*")).apply(old, Boxes(14).state_dict())
    assert new["first.weight"] is old["out1.weight"]
    assert Counted.reads == 0


def test_of_a_checkpoint_only_what_grows_is_read(tmp_path: Path) -> None:
    old = settle(Words(11)).state_dict()
    torch.save(old, tmp_path / "words.pth")
    checkpoint = open_checkpoint(tmp_path / "words.pth")
    stored, headers = checkpoint.stored(), checkpoint.bytes_read
    recipe = Recipe(append("embed.weight", dim=0, init="mean"), rename("norm.*", "last_norm.*"))
    target = {key.replace("norm.", "last_norm."): value for key, value in Words(15).state_dict().items()}
    new = recipe.apply(stored, target)
    assert checkpoint.bytes_read - headers == old["embed.weight"].nbytes
    assert new["last_norm.weight"] is stored["norm.weight"]
    assert new["head.weight"] is new["embed.weight"]
    assert torch.equal(new["embed.weight"], recipe.apply(old, target)["embed.weight"])


def test_extra_state_passes_through() -> None:
    old = boxes()
    old["out2._extra_state"] = {"calls": 3}
    new = Recipe(tile("out2.*", dim=0), rename("out2.*", "box.*")).apply(
        old, {key.replace("out2", "box"): value for key, value in Boxes(14).state_dict().items()}
    )
    assert new["box._extra_state"] == {"calls": 3}
    assert new["box.weight"].shape == (14, 8)


def test_parameters_that_need_gradients_give_tensors_that_do_not() -> None:
    old = Boxes().state_dict(keep_vars=True)
    new = GROW.apply(old, Boxes(14).state_dict())
    assert new["out1.weight"] is old["out1.weight"]
    assert not new["out2.weight"].requires_grad


def test_the_versions_of_modules_follow_their_names() -> None:
    old = nn.DataParallel(Boxes()).state_dict()
    new = Recipe(strip_prefix("module."), rename("conv1.*", "stem.*")).apply(old, {})
    assert new._metadata["stem.1"] == old._metadata["module.conv1.1"] == {"version": 2}  # type: ignore[attr-defined]
    assert "" in new._metadata  # type: ignore[attr-defined]
    assert not any(name.startswith("module") for name in new._metadata)  # type: ignore[attr-defined]


def test_a_module_of_which_one_key_was_renamed_keeps_its_version() -> None:
    old = Boxes().state_dict()
    new = Recipe(rename("conv1.1.weight", "elsewhere.weight")).apply(old, {})
    assert new._metadata["conv1.1"] == new._metadata["elsewhere"] == {"version": 2}  # type: ignore[attr-defined]


def test_an_empty_recipe_gives_everything_as_it_is() -> None:
    old = boxes()
    growth = Recipe().run(old, {})
    assert list(growth.state_dict) == list(old)
    assert all(growth.state_dict[key] is old[key] for key in old)
    assert (growth.touched, growth.origin) == ({}, {key: key for key in old})


# -- ties ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["embed.weight", "head.weight", "*.weight"])
def test_naming_one_of_several_tied_keys_moves_the_tie(name: str) -> None:
    old, new = settle(Words(11)).state_dict(), Words(15)
    growth = Recipe(append(name, dim=0, init="mean")).run(old, new.state_dict())
    assert growth.state_dict["embed.weight"] is growth.state_dict["head.weight"]
    assert set(growth.touched) == {"embed.weight", "head.weight"}
    new.load_state_dict(growth.state_dict)


def test_one_recipe_serves_a_tied_and_an_untied_checkpoint() -> None:
    recipe = Recipe(append("embed.weight", dim=0, init="mean"), append("head.weight", dim=0, init="mean"))
    tied = settle(Words(11)).state_dict()
    untied = OrderedDict(tied, **{"head.weight": tied["head.weight"] + 1})
    for old in (tied, untied):
        new = recipe.apply(old, Words(15).state_dict())
        assert new["embed.weight"].shape == new["head.weight"].shape == (15, 8)
    assert not torch.equal(new["embed.weight"], new["head.weight"])


def test_an_operator_that_disagrees_with_how_the_tie_was_moved_is_an_error() -> None:
    recipe = Recipe(append("embed.weight", dim=0, init="mean"), append("head.weight", dim=0, init="zeros"))
    with pytest.raises(RecipeError, match=r"head\.weight.* changes nothing"):
        recipe.apply(settle(Words(11)).state_dict(), Words(15).state_dict())


def test_a_tie_is_cut_where_the_model_has_the_old_shape_still() -> None:
    old = settle(Words(11)).state_dict()
    target = {**old, "embed.weight": torch.empty(15, 8)}
    new = Recipe(tile("embed.weight", dim=0)).apply(old, target)
    assert new["embed.weight"].shape == (15, 8)
    assert new["head.weight"] is old["head.weight"]


def test_tied_keys_that_the_model_has_in_different_sizes_are_grown_each_to_its_own() -> None:
    old = settle(Words(11)).state_dict()
    target = {**old, "embed.weight": torch.empty(15, 8), "head.weight": torch.empty(13, 8)}
    new = Recipe(tile("*.weight", dim=0)).apply(old, target)
    assert (len(new["embed.weight"]), len(new["head.weight"])) == (15, 13)


def test_meta_tensors_are_tied_by_their_storage() -> None:
    with torch.device("meta"):
        old = Words(11).state_dict()
    assert old["embed.weight"] is not old["head.weight"]
    new = Recipe(tile("embed.weight", dim=0)).apply(old, Words(15).state_dict())
    assert new["head.weight"].shape == (15, 8)


# -- what was touched, and where everything comes from -------------------------------------------------------


def test_touched_and_origin() -> None:
    recipe = Recipe(
        rename("out2.*", "box.*"), tile("box.*", dim=0), drop("out1.*"), rename("conv1.*", "stem.*")
    )
    target = {key.replace("out2", "box"): value for key, value in Boxes(14).state_dict().items()}
    growth = recipe.run(boxes(), target)
    assert growth.touched == {
        "box.weight": (recipe.operators[1],),
        "box.bias": (recipe.operators[1],),
        "out1.weight": (recipe.operators[2],),
        "out1.bias": (recipe.operators[2],),
    }
    assert growth.origin["box.bias"] == "out2.bias"
    assert growth.origin["stem.0.weight"] == "conv1.0.weight"
    assert growth.origin["fc.0.weight"] == "fc.0.weight"
    assert "out1.bias" not in growth.origin


def test_what_was_touched_is_touched_under_its_later_name() -> None:
    recipe = Recipe(tile("out2.*", dim=0), rename("out2.*", "box.*"), tile("box.bias", dim=0, to=20))
    target = {key.replace("out2", "box"): value for key, value in Boxes(14).state_dict().items()}
    growth = recipe.run(boxes(), target)
    assert growth.touched == {
        "box.weight": (recipe.operators[0],),
        "box.bias": (recipe.operators[0], recipe.operators[2]),
    }


def test_the_claim_is_that_of_all_operators() -> None:
    old = {"a": torch.ones(2, 2), "b": torch.ones(2, 2)}
    assert Recipe(tile("a", dim=0, to=3), append("b", dim=1, n=1)).run(old, {}).changes_function == {}
    inputs = tile("b", dim=1, to=3)
    declared = Recipe(tile("a", dim=0, to=3), inputs).run(old, {}).changes_function
    assert list(declared) == [inputs]
    assert "repeats inputs" in declared[inputs]


# -- sizes ---------------------------------------------------------------------------------------------------


def test_sizes_come_from_the_model_through_later_names() -> None:
    target = {f"net.{key}": value for key, value in Boxes(14).state_dict().items()}
    new = Recipe(tile("out2.*", dim=0), add_prefix("net.")).apply(boxes(), target)
    assert new["net.out2.weight"].shape == (14, 8)


def test_a_size_that_nobody_tells_is_an_error() -> None:
    with pytest.raises(
        RecipeError, match=r"the model does not have it, so the size of dimension 0 must be given"
    ):
        Recipe(tile("out2.weight", dim=0)).apply(boxes(), {})


def test_a_glob_passes_by_what_has_its_size_already() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    wider = {**net.state_dict(), "0.weight": torch.empty(6, 3), "0.bias": torch.empty(6)}
    growth = Recipe(tile("*", dim=0)).run(net.state_dict(), wider)
    assert list(growth.touched) == ["0.weight", "0.bias"]


# -- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "rule", "key", "text"),
    [
        (Recipe(tile("out2.wieght", dim=0)), "recipe-unused-op", "out2.wieght", 'did you mean "out2.weight"'),
        (
            Recipe(tile("ouput.*", dim=0)),
            "recipe-unused-op",
            "ouput.*",
            'tile("ouput.*", dim=0) matches nothing',
        ),
        (
            Recipe(tile("out1.*", dim=0)),
            "recipe-unused-op",
            "out1.*",
            '"out1.weight" is (1, 8), the model has (1, 8)',
        ),
        (Recipe(tile("out2.bias", dim=1)), "recipe-error", "out2.bias", "it is (4,), with no dimension 1"),
        (
            Recipe(tile("fc.1.num_batches_tracked", dim=0)),
            "recipe-error",
            "fc.1.num_batches_tracked",
            "no dimension",
        ),
        (Recipe(tile("out2.weight", dim=0, to=3)), "recipe-error", "out2.weight", "has 4 and is to have 3"),
        (Recipe(append("out2.weight", dim=0, n=-1)), "recipe-error", "out2.weight", "has 4 and is to have 3"),
        (Recipe(strip_prefix("module.")), "recipe-unused-op", "module.", 'begins with "module."'),
        (
            Recipe(rename("out2.*", "out1.*")),
            "recipe-error",
            "out1.weight",
            "gives both out1.weight and out2.weight",
        ),
        (
            Recipe(rename("out*.bias", "b")),
            "recipe-error",
            "b",
            "gives both out1.bias and out2.bias the name b",
        ),
        (Recipe(drop("aux.*")), "recipe-unused-op", "aux.*", "matches nothing"),
        (Recipe(rename("a.*", "b.*"), drop("out2.*")), "recipe-unused-op", "a.*", "matches nothing"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(recipe: Recipe, rule: str, key: str, text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.apply(boxes(), Boxes(14).state_dict())
    assert (caught.value.rule, caught.value.key) == (rule, key)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"key": 3, "dim": 0}, "tile: key wants a text, not 3"),
        ({"key": "a", "dim": 0.5}, "tile: dim wants a whole number, not 0.5"),
        ({"key": "a", "dim": True}, "tile: dim wants a whole number, not True"),
        ({"key": "a", "dim": 0, "to": "14"}, "tile: to wants a whole number or nothing, not '14'"),
        ({"key": "a", "dim": 0, "optim": "keep"}, "tile: optim wants 'copy', 'zeros', 'reset', not 'keep'"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        tile(**arguments)
    assert str(caught.value) == text


def test_an_error_shows_the_beginning_of_a_long_list() -> None:
    with pytest.raises(RecipeError) as caught:
        select("nothing", dim=0, index=list(range(1000))).apply(boxes(), {})
    assert str(caught.value).startswith(
        'select("nothing", dim=0, index=[0, 1, 2, 3, … 996 more]) matches nothing'
    )


def test_a_recipe_takes_operators_alone() -> None:
    with pytest.raises(RecipeError, match="takes operators"):
        Recipe("out2.*")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="have as many stars"):
        rename("a.*", "*.b.*")


# -- as text -------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
some = st.one_of(
    st.builds(
        tile,
        texts,
        st.integers(-2, 3),
        to=st.none() | st.integers(1, 99),
        noise_std=st.floats(0, 1e3),
        seed=st.integers(0, 2**40),
        optim=st.sampled_from(["copy", "zeros", "reset"]),
    ),
    st.builds(
        append, texts, dim=st.integers(0, 3), init=st.sampled_from(["mean", "normal"]), std=st.floats(0, 1)
    ),
    st.builds(drop, texts),
    st.builds(strip_prefix, texts),
    st.builds(rename, texts.filter(lambda text: "*" not in text), texts.filter(lambda text: "*" not in text)),
)


@settings(deadline=None)
@given(st.lists(some, max_size=4))
def test_toml_and_repr_give_the_recipe_back(chosen: list[Any]) -> None:
    recipe = Recipe(*chosen)
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    again = eval(repr(recipe), {"Recipe": Recipe, **OPERATORS})
    assert again == recipe
    assert hash(again) == hash(recipe)
    assert repr(recipe).isprintable()


def test_defaults_are_left_out() -> None:
    assert repr(GROW) == 'Recipe(tile("out2.*", dim=0))'
    assert GROW.to_toml() == '[[recipe]]\nop = "tile"\nkey = "out2.*"\ndim = 0\n'
    assert repr(scale("b", [0.5, 2], dim=0)) == 'scale("b", [0.5, 2.0], dim=0)'
    assert repr(cast("*", "float16")) == 'cast("*", dtype="float16")'
    assert repr(rename('a\'s "b"', "x##[y")) == r"""rename("a's \"b\"", "x\x23\x23[y")"""


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[[recipe]", "the recipe file is not valid TOML"),
        (
            '[[recipe]]\nop = "strip_prefx"\nkey = "a"',
            "operator 1 of the recipe: unknown op 'strip_prefx': did you mean 'strip_prefix'?",
        ),
        (
            '[[recipe]]\nkey = "a"',
            "operator 1 of the recipe: op is missing: known are add, add_prefix, append",
        ),
        ('[[recipe]]\nop = "tile"\nkey = "a"', "tile: dim is missing: tile(key, dim, to=None, "),
        (
            '[[recipe]]\nop = "tile"',
            "tile: key and dim are missing: tile(key, dim, to=None, noise_std=0.0, seed=0",
        ),
        ('[[recipe]]\nop = "drop"\nkey = "aux.*"', "drop: unknown 'key': drop(pattern)"),
        (
            '[[recipe]]\nop = "reduce"\nkey = "a"',
            "reduce: dim and groups are missing: reduce(key, dim, groups, reduction='mean'",
        ),
        (
            '[[recipe]]\nop = "tile"\nkey = "a"\ndim = 0\nsize = 3',
            "tile: unknown 'size': tile(key, dim, to=None, ",
        ),
        (
            '[[recipe]]\nop = "tile"\nkey = "a"\ndim = 0\nnoise = 3',
            "tile: unknown 'noise': did you mean 'noise_std'? It is tile(key, dim, to=None, ",
        ),
        ('recipe = "tile"', r"a recipe is a list of tables: write [[recipe]]"),
        ('[[recipes]]\nop = "tile"', "unknown 'recipes' in a recipe"),
    ],
)
def test_a_faulty_recipe_file(text: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_toml(text)
    assert str(caught.value).startswith(error)
    (tmp_path / "grow.toml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        Recipe.load(tmp_path / "grow.toml")
    assert f"grow.toml: {error}" in str(caught.value)


def test_a_recipe_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "grow.toml"
    path.write_text(GROW.to_toml())
    assert Recipe.load(path) == Recipe.load(str(path)) == GROW
    path.write_bytes(b"\xff")
    with pytest.raises(RecipeError, match="not UTF-8"):
        Recipe.load(path)
    with pytest.raises(RecipeError, match=r"none\.toml does not exist"):
        Recipe.load(tmp_path / "none.toml")
