"""Loading for use, as the product does it."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from networks import Boxes, Grown, Words, settle
from safetensors.torch import save_file
from torch import nn

from pytest_ckptcompat import (
    CheckpointError,
    MisfitError,
    Recipe,
    RecipeError,
    load,
    open_checkpoint,
    rename,
    tile,
)
from pytest_ckptcompat.core.errors import AmbiguousError
from pytest_ckptcompat.tensors.deferred import DeferredTensor

if TYPE_CHECKING:
    from pathlib import Path

GROW = Recipe(tile("out2.*", dim=0))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save({"model": settle(Boxes()).state_dict(), "epoch": 3}, tmp_path / "v1.pth")
    return tmp_path / "v1.pth"


def assert_equal(model: nn.Module, expected: dict[str, Any]) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())


@pytest.mark.parametrize("model", [Boxes, Boxes(), "networks:Boxes"], ids=["callable", "module", "name"])
def test_a_checkpoint_is_loaded_as_torch_loads_it(model: Any, saved: Path) -> None:
    loaded = load(model, saved)
    assert_equal(loaded, torch.load(saved)["model"])
    assert loaded.training
    assert loaded is model or not isinstance(model, nn.Module)


def test_an_old_checkpoint_by_its_recipe(saved: Path, tmp_path: Path) -> None:
    by_hand = torch.load(saved)["model"]
    for key in ("out2.weight", "out2.bias"):
        old = by_hand[key]
        by_hand[key] = torch.cat([old, old, old, old[:2]])
    (tmp_path / "grow.toml").write_text(GROW.to_toml())
    for recipe in (GROW, tmp_path / "grow.toml"):
        assert_equal(load(Grown, saved, recipe), by_hand)


@pytest.mark.parametrize(
    ("path", "recipe", "error", "said"),
    [
        (3, None, CheckpointError, "path is of type int: give a path"),
        ({}, None, CheckpointError, "path is of type dict: give a path"),
        ("v1.pth", GROW.operators[0], RecipeError, 'recipe=tile("out2.*", dim=0) is not a Recipe'),
        ("v1.pth", 3, RecipeError, "recipe=3 is not a Recipe"),
    ],
)
def test_arguments_of_another_kind(path: Any, recipe: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=re.escape(said)):
        load(Boxes, path, recipe)


def test_a_large_model_draws_no_random_numbers(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4100, 4100), nn.Linear(2, 2))

    torch.save(make().state_dict(), tmp_path / "large.pth")
    before = torch.get_rng_state()
    loaded = load(make, tmp_path / "large.pth")
    assert torch.equal(torch.get_rng_state(), before)
    assert_equal(loaded, torch.load(tmp_path / "large.pth"))


def test_a_misfit_tells_the_whole_table_and_changes_nothing(saved: Path) -> None:
    model = Grown()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(MisfitError) as raised:
        load(model, saved)
    assert_equal(model, before)
    text = str(raised.value)
    assert text.startswith(
        "v1.pth does not fit Grown: 2 mismatched, 0 missing, 0 unexpected (26 of 28 keys match)"
    )
    rows = [line.split() for line in text.splitlines() if line.startswith("shape-mismatch")]
    assert rows == [
        ["shape-mismatch", "out2.weight", "(4,", "8)", "f32", "(14,", "8)", "f32"],
        ["shape-mismatch", "out2.bias", "(4,)", "f32", "(14,)", "f32"],
    ]


def test_other_errors_are_of_their_own_kind(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth"):
        load(Boxes, tmp_path / "none.pth")
    with pytest.raises(RecipeError, match="matches nothing"):
        load(Boxes, saved, Recipe(rename("nothing.*", "other.*")))
    with pytest.raises(RecipeError, match=r"none\.toml"):
        load(Boxes, saved, tmp_path / "none.toml")
    with pytest.raises(MisfitError, match=r"can't be built.*no width"):
        load(lambda: nn.Linear(**{"no width": 1}), saved)


def test_of_several_state_dicts_the_one_that_fits(saved: Path, tmp_path: Path) -> None:
    state = torch.load(saved)["model"]
    torch.save({"generator": Words().state_dict(), "critic": state}, tmp_path / "two.pth")
    assert_equal(load(Boxes, tmp_path / "two.pth"), state)
    with pytest.raises(CheckpointError, match="generator"):
        load(lambda: nn.Linear(2, 2), tmp_path / "two.pth")


def test_of_several_state_dicts_that_fit_none_is_loaded(tmp_path: Path) -> None:
    torch.save({"a": Boxes().state_dict(), "b": Boxes().state_dict()}, tmp_path / "two.pth")
    with pytest.raises(AmbiguousError, match="it holds 2 state dicts"):
        load(Boxes, tmp_path / "two.pth")


def test_a_key_counts_for_an_opened_checkpoint_too(saved: Path, tmp_path: Path) -> None:
    average = settle(Boxes(), 5).state_dict()
    torch.save({"model": torch.load(saved)["model"], "ema": average}, tmp_path / "both.pth")
    opened = open_checkpoint(tmp_path / "both.pth", "model")
    assert_equal(load(Boxes, opened, state_dict_key="ema"), average)
    with pytest.raises(CheckpointError, match="nope"):
        load(Boxes, opened, state_dict_key="nope")


def test_a_lock_has_nothing_to_load(saved: Path, tmp_path: Path) -> None:
    from pytest_ckptcompat.cli import main

    assert main(["lock", str(saved), "-o", str(tmp_path / "v1.ckpt.json")]) == 0
    with pytest.raises(CheckpointError, match="can't be loaded: a lock file has no values"):
        load(Boxes, tmp_path / "v1.ckpt.json")


def test_a_module_on_meta_gets_memory_and_keeps_its_ties(tmp_path: Path) -> None:
    torch.save(settle(Words()).state_dict(), tmp_path / "words.pth")
    with torch.device("meta"):
        model = Words()
    loaded = load(model, tmp_path / "words.pth")
    assert loaded is model
    assert model.head.weight is model.embed.weight
    assert isinstance(model.head.weight, nn.Parameter)
    assert_equal(loaded, torch.load(tmp_path / "words.pth"))


class Scratch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("scratch", torch.zeros(3), persistent=False)


def test_what_no_load_reaches_is_not_left_on_meta(tmp_path: Path) -> None:
    torch.save(Scratch().state_dict(), tmp_path / "scratch.pth")
    with torch.device("meta"):
        model = Scratch()
    with pytest.raises(MisfitError, match="scratch is on the meta device"):
        load(model, tmp_path / "scratch.pth")


class Keeping(nn.Module):
    """Keeps what it is given, as loaders of its own make do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.seen: dict[str, Any] = {}

    def _load_from_state_dict(self, state: Any, prefix: str, *_: Any) -> None:
        self.weight = nn.Parameter(state["weight"])
        self.last = state["weight"]
        self.seen = {"all": [state["weight"]]}


def test_no_tensor_that_is_still_on_disk_is_left_in_the_model(tmp_path: Path) -> None:
    torch.save({"weight": torch.tensor([1.0, 2.0, 3.0])}, tmp_path / "kept.pth")
    model = load(Keeping, tmp_path / "kept.pth")
    (tmp_path / "kept.pth").unlink()
    for tensor in (model.weight, model.last, model.seen["all"][0]):
        assert not isinstance(tensor, DeferredTensor)
        assert tensor.tolist() == [1, 2, 3]
    assert isinstance(model.weight, nn.Parameter)


class Refusing(nn.Linear):
    def _load_from_state_dict(self, state: Any, *rest: Any) -> None:
        if not state["weight"].is_meta:
            raise RuntimeError("only on Tuesdays")
        super()._load_from_state_dict(state, *rest)


def test_a_loader_of_the_model_s_own_that_raises_is_a_misfit(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(MisfitError, match=r"does not load into.*only on Tuesdays"):
        load(lambda: Refusing(2, 2), tmp_path / "linear.pth")


def test_values_that_a_tie_would_lose_are_a_misfit(tmp_path: Path) -> None:
    state = settle(Words()).state_dict()
    save_file(
        {key: value.clone() for key, value in state.items()} | {"head.weight": state["head.weight"] + 1},
        tmp_path / "words.safetensors",
    )
    with pytest.raises(MisfitError, match="tied-conflict"):
        load(Words, tmp_path / "words.safetensors")


def test_a_plain_script_needs_no_pytest(saved: Path, tmp_path: Path) -> None:
    script = (
        "import sys, torch\n"
        "from networks import Grown\n"
        "from pytest_ckptcompat import Recipe, load, tile\n"
        "net = load(Grown, sys.argv[1], recipe=Recipe(tile('out2.*', dim=0)))\n"
        "assert net.out2.out_features == 14\n"
        "print([name for name in ('pytest', '_pytest') if name in sys.modules])\n"
    )
    support = str(next(path for path in sys.path if path.endswith("support")))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {support!r})\n{script}", str(saved)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
