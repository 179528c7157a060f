from __future__ import annotations

import argparse
import copy
import subprocess
import sys
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from networks import Boxes, Words, settle
from torch import nn
from trainings import decay_by_rank, grown, training

from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint
from pytest_ckptcompat.checks.apply import MisfitError, apply, apply_declared
from pytest_ckptcompat.checks.arguments import CheckArguments
from pytest_ckptcompat.core.errors import CheckpointError, RecipeError
from pytest_ckptcompat.recipes.operators.append import append
from pytest_ckptcompat.recipes.operators.blocks import insert_block, stack
from pytest_ckptcompat.recipes.operators.rename import rename
from pytest_ckptcompat.recipes.operators.tile import tile
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.tensors.difference import same_bits

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

GROW = Recipe(tile("out2.*", dim=0))


def saved(path: Path, content: Any) -> Any:
    torch.save(content, path)
    return open_checkpoint(path)


def equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return list(one) == list(other) and all(same_bits(one[key], other[key]) for key in one)


# -- torch files -------------------------------------------------------------------------------------------


def test_a_plain_state_dict_is_grown_as_the_recipe_grows_it(tmp_path: Path) -> None:
    old = settle(Boxes()).state_dict()
    ckpt = saved(tmp_path / "net.pth", old)
    written = apply(ckpt, Boxes(14), GROW, tmp_path / "net14.pth")
    loaded = torch.load(tmp_path / "net14.pth", weights_only=True)
    expected = GROW.apply(old, Boxes(14).state_dict())
    assert isinstance(loaded, OrderedDict)
    assert equal(loaded, expected)
    assert loaded._metadata == old._metadata  # type: ignore[attr-defined]
    assert Boxes(14).load_state_dict(loaded).missing_keys == []
    assert str(written).startswith(f"{tmp_path}/net14.pth: 28 tensors, ")
    assert written.notes == ()
    assert equal(open_checkpoint(tmp_path / "net14.pth").state_dict(), expected)


def test_of_a_state_dict_that_was_chosen_by_its_prefix_that_part_is_written(tmp_path: Path) -> None:
    whole = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    content = {"state_dict": whole.state_dict(), "epoch": 3}
    part, notes = grown(tmp_path, content, nn.Linear(2, 2), Recipe(), key="state_dict.backbone")
    assert equal(part, whole["backbone"].state_dict())
    assert "what is not below 'state_dict.backbone' is left out" in notes


def test_the_outer_object_is_kept_and_the_optimizer_grown(tmp_path: Path) -> None:
    content = training(settle(Boxes()))
    content["args"] = {
        "lr": 1e-3,
        "betas": (0.9, 0.95),
        "tags": ["a", None],
        "blob": b"\x00\xff",
        "big": 2**70,
    }
    content["rng"] = torch.get_rng_state()
    loaded, notes = grown(tmp_path, content, Boxes(14), GROW)
    assert list(loaded) == list(content)
    assert loaded["epoch"] == content["epoch"] == 3
    assert loaded["args"] == content["args"]
    assert same_bits(loaded["rng"], content["rng"])
    assert equal(loaded["model"], GROW.apply(content["model"], Boxes(14).state_dict()))
    assert notes == ("optimizer is grown too",)

    model = Boxes(14)
    model.load_state_dict(loaded["model"])
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    optimizer.load_state_dict(loaded["optimizer"])
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
        assert state["step"] == 3
        parameter.grad = torch.ones_like(parameter)
    moments = optimizer.state[model.out2.weight]["exp_avg"][:4]
    [number] = [n for n, (name, _) in enumerate(Boxes().named_parameters()) if name == "out2.weight"]
    assert same_bits(moments, content["optimizer"]["state"][number]["exp_avg"])
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_group_options_and_places_are_kept(tmp_path: Path) -> None:
    model = settle(Boxes())
    content = training(model, decay_by_rank)
    order = [
        name
        for matrices in (False, True)
        for name, each in model.named_parameters()
        if (each.ndim > 1) is matrices
    ]
    for group in content["optimizer"]["param_groups"]:
        group["param_names"] = [order[number] for number in group["params"]]
    loaded, notes = grown(tmp_path, content, Boxes(14), GROW)
    assert notes == ("optimizer is grown too",)
    assert loaded["optimizer"]["param_groups"] == content["optimizer"]["param_groups"]
    for number, slots in content["optimizer"]["state"].items():
        assert same_bits(
            loaded["optimizer"]["state"][number]["exp_avg"][: len(slots["exp_avg"])], slots["exp_avg"]
        )


class Reordered(Boxes):
    """The head is called ``branch`` and comes first: every parameter has another number."""

    def __init__(self) -> None:
        super().__init__(14)
        others = {name: each for name, each in self.named_children() if name != "out2"}
        self._modules = {"branch": self.out2, **others}


def test_an_order_of_its_own_keeps_its_places(tmp_path: Path) -> None:
    model = settle(Boxes())
    content = training(model, lambda parameters: torch.optim.AdamW(list(parameters)[::-1]))
    names = [name for name, _ in model.named_parameters()][::-1]
    content["optimizer"]["param_groups"][0]["param_names"] = names
    recipe = Recipe(rename("out2.*", "branch.*"), tile("branch.*", dim=0))
    loaded = grown(tmp_path, content, Reordered(), recipe)[0]["optimizer"]
    assert loaded["param_groups"][0]["param_names"] == [name.replace("out2", "branch") for name in names]
    for number, slots in content["optimizer"]["state"].items():
        assert same_bits(loaded["state"][number]["exp_avg"][: len(slots["exp_avg"])], slots["exp_avg"])


def test_ties_are_kept(tmp_path: Path) -> None:
    old = settle(Words()).state_dict()
    loaded, _ = grown(tmp_path, old, Words(15), Recipe(append("embed.weight", dim=0, init="mean")))
    assert loaded["embed.weight"].data_ptr() == loaded["head.weight"].data_ptr()
    assert loaded["embed.weight"].shape == (15, 8)
    assert open_checkpoint(tmp_path / "new.pth").ties == [("embed.weight", "head.weight")]
    untouched = Recipe(rename("norm.weight", "norm.weight2"), rename("norm.weight2", "norm.weight"))
    loaded, _ = grown(tmp_path, old, Words(), untouched)
    assert loaded["embed.weight"].data_ptr() == loaded["head.weight"].data_ptr()
    assert equal(loaded, old)


class Blocks(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(count))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("recipe", "came"),
    [(insert_block("layers.1", at=1, zero=["bias"]), (0, 1, 1)), (stack("layers", times=2), (0, 1, 0, 1))],
    ids=["inserted", "stacked"],
)
def test_a_copied_block_is_no_tie(tmp_path: Path, recipe: Any, came: tuple[int, ...], suffix: str) -> None:
    """The copy is the same memory until it is written; a name of its own must not be lost to safetensors."""
    old = settle(Blocks(2)).state_dict()
    ckpt = saved(tmp_path / "net.pth", old)
    apply(ckpt, Blocks(len(came)), Recipe(recipe), tmp_path / f"out{suffix}")
    written = open_checkpoint(tmp_path / f"out{suffix}")
    assert set(written) == set(Blocks(len(came)).state_dict())
    assert written.ties == []
    for layer, source in enumerate(came):
        assert same_bits(written.tensor(f"layers.{layer}.weight"), old[f"layers.{source}.weight"])


def test_names_that_the_model_ties_and_the_checkpoint_does_not_keep_their_own_values(tmp_path: Path) -> None:
    old = settle(Words()).state_dict()
    old["head.weight"] = old["head.weight"] + 1
    recipe = Recipe(rename("norm.weight", "x"), rename("x", "norm.weight"))
    assert equal(grown(tmp_path, old, Words(), recipe)[0], old)


def test_optimizer_state_of_a_copied_block_is_numbered_as_the_new_model_numbers_it(tmp_path: Path) -> None:
    model = settle(Blocks(3))
    content = training(model)
    new = Blocks(4)
    loaded, _ = grown(tmp_path, content, new, Recipe(insert_block("layers.0", at=1, zero=["bias"])))
    optimizer = torch.optim.AdamW(new.parameters())
    optimizer.load_state_dict(loaded["optimizer"])
    for layer, came in ((0, 0), (2, 1), (3, 2)):
        moments = optimizer.state[new.layers[layer].weight]["exp_avg"]
        assert same_bits(moments, content["optimizer"]["state"][2 * came]["exp_avg"])


def test_objects_of_classes_are_left_out_and_named(tmp_path: Path) -> None:
    content = {
        "model": settle(Boxes()).state_dict(),
        "args": argparse.Namespace(lr=1),
        "deep": {"path": [1, tmp_path]},
    }
    loaded, notes = grown(tmp_path, content, Boxes(14), GROW)
    assert list(loaded) == ["model", "deep"]
    assert loaded["deep"] == {"path": [1, None]}
    assert notes == (
        "args is left out: an object of a class",
        "deep.path[1] is left out: an object of a class",
    )


class Configured(nn.Linear):
    """Its extra state is an object of a class, which ``weights_only`` refuses."""

    def get_extra_state(self) -> Any:
        return argparse.Namespace(lr=1)

    def set_extra_state(self, state: Any) -> None:
        pass


@pytest.mark.parametrize("out", ["out.pth", "out"])
def test_extra_state_that_is_an_object_is_left_out_and_named(tmp_path: Path, out: str) -> None:
    ckpt = saved(tmp_path / "net.pth", Configured(2, 2).state_dict())
    written = apply(ckpt, Configured(2, 4), Recipe(tile("*", dim=0)), tmp_path / out)
    assert written.notes == ("_extra_state is left out: an object of a class",)
    state = open_checkpoint(tmp_path / out).state_dict()
    assert list(state) == ["weight", "bias"]
    nn.Linear(2, 4).load_state_dict(state)


def test_of_several_state_dicts_the_one_that_fits_after_a_recipe_file_is_written(tmp_path: Path) -> None:
    average = settle(Boxes(), 5)
    part = {key: value for key, value in settle(Boxes()).state_dict().items() if key != "out2.bias"}
    torch.save({"old": part, "new": average.state_dict()}, tmp_path / "net.pth")
    (tmp_path / "grow.toml").write_text(GROW.to_toml())
    declared = CheckArguments.of(model=lambda: Boxes(14), recipe=tmp_path / "grow.toml")
    opener = lambda key: open_checkpoint(tmp_path / "net.pth", key)  # noqa: E731
    apply_declared(declared, opener, str(tmp_path / "out.pth"))
    written = torch.load(tmp_path / "out.pth", weights_only=True)["new"]
    assert equal(written, GROW.apply(average.state_dict(), Boxes(14).state_dict()))


def test_an_optimizer_that_can_not_be_imported_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(training(settle(Boxes())), path)
    declared = CheckArguments.of(model=lambda: Boxes(14), recipe=GROW, optimizer="nowhere:Adam")
    with pytest.raises(CheckpointError, match=r"^optimizer: nowhere:Adam: there is no module 'nowhere'"):
        apply_declared(declared, lambda key: open_checkpoint(path, key), str(tmp_path / "out.pth"))


def test_containers_and_values_beside_the_weights_keep_their_kinds(tmp_path: Path) -> None:
    beside = {
        "seen": {1, 2},
        "counts": Counter("aab"),
        "ordered": OrderedDict(a=1),
        "size": torch.Size((2, 3)),
        "pairs": {(1, 2): 3},
        "raw": bytearray(b"x"),
        "layout": torch.strided,
        "dtype": torch.bfloat16,
        "device": torch.device("cuda:1"),
        "conjugated": torch.ones(2, dtype=torch.complex64).conj(),
    }
    new, notes = grown(tmp_path, {"model": settle(Boxes()).state_dict(), **beside}, Boxes(14), GROW)
    assert notes == ()
    old = torch.load(tmp_path / "old.pth", weights_only=True)
    assert torch.equal(new.pop("conjugated"), old.pop("conjugated"))
    assert {key: new[key] for key in beside if key in new} == {key: old[key] for key in beside if key in old}
    assert [type(new[key]) for key in new] == [type(old[key]) for key in new]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("out", ["out.pth", "out/"])
def test_tensors_without_a_plain_layout_are_left_out_beside_the_weights_and_refused_among_them(
    tmp_path: Path, out: str
) -> None:
    """Their memory does not hold their values, so torch would write something else, or fail."""
    odd = {
        "sparse": torch.eye(3).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([torch.ones(2)]),
        "meta": torch.empty(2, device="meta"),
    }
    state = settle(Boxes()).state_dict()
    ckpt = saved(tmp_path / "net.pth", {"model": state, **odd})
    notes = apply(ckpt, Boxes(14), GROW, f"{tmp_path}/{out}").notes
    assert notes == tuple(f"{name} is left out: {name} tensors are not written" for name in odd)
    model = Boxes()
    model.register_buffer("mask", odd["sparse"])
    ckpt = saved(tmp_path / "net.pth", {**state, "mask": odd["sparse"]})
    with pytest.raises(ValueError, match="mask is quantized, sparse or nested, and can't be written"):
        apply(ckpt, model, Recipe(), f"{tmp_path}/other-{out}")


def test_a_second_state_dict_is_kept_and_said(tmp_path: Path) -> None:
    state = settle(Boxes()).state_dict()
    loaded, notes = grown(tmp_path, {"state_dict": state, "other": copy.deepcopy(state)}, Boxes(14), GROW)
    assert loaded["state_dict"]["out2.bias"].shape == (14,)
    assert equal(loaded["other"], state)
    assert notes == (
        "other is kept as it was: name it with state_dict_key= (on the command line --key) to grow it",
    )


def test_the_same_recipe_gives_the_same_bytes_and_may_replace_its_source(tmp_path: Path) -> None:
    ckpt = saved(tmp_path / "net.pth", training(settle(Boxes())))
    recipe = Recipe(append("out2.*", dim=0, init="kaiming_uniform", seed=3))
    apply(ckpt, Boxes(14), recipe, tmp_path / "one.pth")
    with pytest.raises(ValueError, match=r"net\.pth is the checkpoint itself, which only --force"):
        apply(ckpt, Boxes(14), recipe, tmp_path / "net.pth")
    apply(ckpt, Boxes(14), recipe, tmp_path / "net.pth", force=True)
    assert (tmp_path / "one.pth").read_bytes() == (tmp_path / "net.pth").read_bytes()


# -- safetensors -------------------------------------------------------------------------------------------


def test_safetensors_holds_the_state_dict(tmp_path: Path) -> None:
    content = training(settle(Boxes()))
    ckpt = saved(tmp_path / "train.pth", content)
    written = apply(ckpt, Boxes(14), GROW, tmp_path / "net14.safetensors")
    loaded = safetensors.torch.load_file(tmp_path / "net14.safetensors")
    expected = GROW.apply(content["model"], Boxes(14).state_dict())
    assert set(loaded) == set(expected)
    assert all(same_bits(loaded[key], expected[key]) for key in expected)
    assert written.notes == ("the state dict alone: safetensors holds nothing else",)


def test_safetensors_names_its_ties(tmp_path: Path) -> None:
    ckpt = saved(tmp_path / "words.pth", settle(Words()).state_dict())
    recipe = Recipe(append("embed.weight", dim=0, init="mean"))
    apply(ckpt, Words(15), recipe, tmp_path / "words15.safetensors")
    with safetensors.safe_open(tmp_path / "words15.safetensors", "pt") as opened:
        assert "head.weight" not in opened.keys()  # noqa: SIM118  # it is not a mapping
        assert opened.metadata() == {"format": "pt", "head.weight": "embed.weight"}
    model = Words(15)
    assert safetensors.torch.load_model(model, tmp_path / "words15.safetensors") == (set(), [])


def test_from_safetensors_to_torch(tmp_path: Path) -> None:
    old = settle(Boxes()).state_dict()
    safetensors.torch.save_file(old, tmp_path / "net.safetensors")
    ckpt = open_checkpoint(tmp_path / "net.safetensors")
    apply(ckpt, Boxes(14), GROW, tmp_path / "net14.pth")
    loaded = torch.load(tmp_path / "net14.pth", weights_only=True)
    expected = GROW.apply(old, Boxes(14).state_dict())
    assert all(same_bits(loaded[key], expected[key]) for key in expected)


# -- faults leave nothing ----------------------------------------------------------------------------------


def test_what_does_not_fit_is_not_written(tmp_path: Path) -> None:
    ckpt = saved(tmp_path / "net.pth", settle(Boxes()).state_dict())
    with pytest.raises(
        MisfitError,
        match=r"2 mismatched, 0 missing, 0 unexpected; shape-mismatch out2\.weight \(5, 8\) f32 → \(14, 8\)",
    ):
        apply(ckpt, Boxes(14), Recipe(tile("out2.*", dim=0, to=5)), tmp_path / "out.pth")
    with pytest.raises(RecipeError, match="out3"):
        apply(ckpt, Boxes(14), Recipe(tile("out3.*", dim=0)), tmp_path / "out.pth")
    assert list(tmp_path.iterdir()) == [tmp_path / "net.pth"]


def test_a_file_name_must_say_the_format(tmp_path: Path) -> None:
    ckpt = saved(tmp_path / "net.pth", settle(Boxes()).state_dict())
    with pytest.raises(ValueError, match=r"out\.h5: write a \.safetensors or a \.pth file, or a folder"):
        apply(ckpt, Boxes(14), GROW, tmp_path / "out.h5")


def test_extra_state_goes_to_torch_files_alone(tmp_path: Path) -> None:
    class Counting(Boxes):
        def get_extra_state(self) -> Any:
            return {"seen": 3}

        def set_extra_state(self, state: Any) -> None:
            self.seen = state["seen"]

    ckpt = saved(tmp_path / "net.pth", Counting().state_dict())
    with pytest.raises(ValueError, match=r"_extra_state is not a tensor, .*: write \.pth"):
        apply(ckpt, Counting(14), GROW, tmp_path / "out.safetensors")
    apply(ckpt, Counting(14), GROW, tmp_path / "out.pth")
    assert torch.load(tmp_path / "out.pth", weights_only=True)["_extra_state"] == {"seen": 3}


def test_a_source_that_breaks_off_leaves_the_old_output(tmp_path: Path) -> None:
    ckpt = saved(tmp_path / "net.pth", settle(Boxes()).state_dict())
    (tmp_path / "out.pth").write_bytes(b"old")
    with (tmp_path / "net.pth").open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(CheckpointError):
        apply(ckpt, Boxes(14), GROW, tmp_path / "out.pth")
    assert (tmp_path / "out.pth").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pth", "out.pth"]


# -- memory ------------------------------------------------------------------------------------------------

MEASURE = """
import resource, sys
import torch
from torch import nn
from pytest_ckptcompat.checks.apply import apply
from pytest_ckptcompat import open_checkpoint
from pytest_ckptcompat import tile
from pytest_ckptcompat import Recipe

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

torch.set_num_threads(1)
small, large, *outputs = sys.argv[1:]
with torch.device("meta"):
    model = nn.ModuleDict({f"l{n}": nn.Linear(1024, 2048) for n in range(7)})
    model["head"] = nn.Linear(1024, 4096)
for output in outputs:
    apply(open_checkpoint(small), nn.Linear(2, 6), Recipe(tile("*", dim=0)), output)  # what first uses take
before = peak()
for output in outputs:
    apply(open_checkpoint(large), model, Recipe(tile("head.*", dim=0)), output)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux alone")
def test_memory_stays_at_the_grown_tensors_and_one(tmp_path: Path) -> None:
    """67 MB in 8 tensors and as much momentum; one grows from 8 to 16 MB, and its momentum with it."""
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "small.pth")
    model = nn.ModuleDict({f"l{n}": nn.Linear(1024, 2048) for n in range(7)})
    model["head"] = nn.Linear(1024, 2048)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "net.pth")
    outputs = [tmp_path / "out.safetensors", tmp_path / "out.pth"]
    command = [sys.executable, "-c", MEASURE, tmp_path / "small.pth", tmp_path / "net.pth", *outputs]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (
        int(ran.stdout) / 1024 < 16 + 16 + 8 + 16
    )  # MB: both grown, one at a time, what the allocator keeps
    assert [path.stat().st_size > size for path, size in zip(outputs, (75e6, 150e6), strict=True)] == [
        True,
        True,
    ]
