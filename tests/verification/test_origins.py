"""Where each tensor of a loaded model comes from: what loaders rightly do, and what they get wrong."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Boxes, Words, settle
from torch import nn

from pytest_ckptcompat import Recipe, scale
from pytest_ckptcompat.verification.computed import Computed
from pytest_ckptcompat.verification.origins import BY_LINES, Origin, trace

if TYPE_CHECKING:
    from collections.abc import Callable

    State = dict[str, Any]


def state(*shapes: tuple[int, ...], names: str = "abcdefgh", seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in zip(names, shapes, strict=False)}


def trained(model: nn.Module, seed: int = 1) -> State:
    return OrderedDict((key, value.clone()) for key, value in settle(model, seed).state_dict().items())


@pytest.mark.parametrize("make", [Boxes, Words])
def test_an_ordinary_load_holds_everything(make: Callable[[], nn.Module]) -> None:
    saved = trained(make())
    model = make()
    model.load_state_dict(saved)
    found = trace(model.state_dict(), saved)
    assert list(found.held) == [key for key in saved if key in found.held]
    assert found.held.keys() == saved.keys()
    assert {origin.how for origin in found.held.values()} == {""}
    assert (found.other, found.missed, found.constants, found.unused) == ({}, {}, {}, [])


@pytest.mark.parametrize(
    ("change", "how"),
    [
        (lambda x: x.half(), "cast to float16"),
        (lambda x: x.bfloat16(), "cast to bfloat16"),
        (lambda x: x.double(), "cast to float64"),
        (lambda x: x.half().float(), "rounded to float16"),
        (lambda x: x.bfloat16().double(), "rounded to bfloat16"),
        (lambda x: x.reshape(3, 40), "reshaped from (6, 20)"),
        (lambda x: x[None, :, :, None], "reshaped from (6, 20)"),
        (lambda x: x.t().contiguous(), "transposed"),
        (lambda x: x.t(), "transposed"),
        (lambda x: x.t()[:, :, None].half(), "transposed, cast to float16"),
        (lambda x: x[torch.tensor([5, 0, 1, 3, 2, 4])], BY_LINES),
        (lambda x: x[:, torch.randperm(20)], BY_LINES),
    ],
)
@pytest.mark.parametrize("name", ["a", "renamed"])
def test_values_are_recognised_whatever_became_of_them(
    change: Callable[[torch.Tensor], torch.Tensor], how: str, name: str
) -> None:
    saved = state((6, 20))
    found = trace({name: change(saved["a"])}, saved)
    assert found.held == {name: Origin(("a",), how)}
    assert found.evidence == {name}
    assert found.unused == []


def test_sparse_tensors_are_recognised_under_another_name() -> None:
    sparse = torch.eye(5).mul(torch.arange(1.0, 6.0)).to_sparse()
    for saved, held in ((sparse, sparse.clone()), (sparse, sparse.to_dense()), (sparse.to_dense(), sparse)):
        found = trace({"renamed": held}, {"a": saved})
        assert found.held.keys() == found.evidence == {"renamed"}


def test_kernels_of_another_framework() -> None:
    saved = state((3, 5, 4, 7))
    found = trace({"conv": saved["a"].permute(3, 2, 0, 1)}, saved)
    assert found.held == {"conv": Origin(("a",), "permuted (3, 2, 0, 1)")}


def attention(d: int = 24) -> State:
    return {
        f"{part}.{leaf}": torch.randn(*((d, d) if leaf == "weight" else (d,)))
        for part in "qkv"
        for leaf in ("weight", "bias")
    }


def fused(parts: State) -> State:
    return {
        f"qkv.{leaf}": torch.cat([parts[f"{part}.{leaf}"] for part in "qkv"]) for leaf in ("weight", "bias")
    }


def interleaved(parts: State, heads: int = 3) -> State:
    """As Megatron and BLOOM have it: the three of each head stand together."""
    return {
        f"qkv.{leaf}": torch.stack(
            [parts[f"{part}.{leaf}"].unflatten(0, (heads, -1)) for part in "qkv"], 1
        ).flatten(0, 2)
        for leaf in ("weight", "bias")
    }


def as_conv1d(parts: State) -> State:
    """As GPT-2 has it: fused and transposed."""
    return {key: value.t().contiguous() if value.dim() == 2 else value for key, value in fused(parts).items()}


@pytest.mark.parametrize("join", [fused, interleaved, as_conv1d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_projections_that_were_fused_or_split(join: Callable[[State], State], dtype: torch.dtype) -> None:
    parts = attention()
    whole = join(parts)
    for saved, held in ((parts, whole), (whole, parts)):
        found = trace({key: value.to(dtype) for key, value in held.items()}, saved)
        assert found.held.keys() == held.keys()
        assert {origin.how for origin in found.held.values()} == {BY_LINES}
        assert (found.missed, found.unused) == ({}, [])


def test_grouped_queries_of_unequal_sizes_are_fused() -> None:
    saved = state((48, 16), (16, 16), (16, 16), (48,), (16,), (16,))
    held = {
        "w": torch.cat([saved["a"], saved["b"], saved["c"]]),
        "v": torch.cat([saved["d"], saved["e"], saved["f"]]),
    }
    found = trace(held, saved)
    assert found.held == {"w": Origin(("a", "b", "c"), BY_LINES), "v": Origin(("d", "e", "f"), BY_LINES)}


def test_experts_are_stacked_and_unbound() -> None:
    saved = state((6, 10), (6, 10), (6, 10), (6,), (6,), (6,))
    stacked = {
        "weights": torch.stack([saved[key] for key in "abc"]),
        "biases": torch.stack([saved[key] for key in "def"]),
    }
    assert trace(stacked, saved).held.keys() == {"weights", "biases"}
    assert trace({f"x.{key}": value for key, value in saved.items()}, stacked).missed == {}


def test_lines_of_zeros_say_nothing_for_or_against() -> None:
    saved = state((8, 6), (8, 6))
    saved["a"][2:5] = 0
    saved["b"][1] = 0
    assert trace({"both": torch.cat([saved["a"], saved["b"]])}, saved).held.keys() == {"both"}


def test_a_fused_tensor_is_held_whatever_else_is_missed() -> None:
    saved = state((8, 6), (8, 6))
    found = trace({"both": torch.cat([saved["a"], saved["b"]]), "head": torch.randn(5, 6)}, saved)
    assert found.held == {"both": Origin(("a", "b"), BY_LINES)}
    assert found.missed == {"head": ""}


def test_a_part_of_the_lines_is_not_enough() -> None:
    saved = state((8, 6), (6, 4))
    grown = torch.cat([saved["a"], torch.randn(2, 6)])
    found = trace({"a": grown, "elsewhere": torch.cat([saved["b"], torch.randn(1, 4)])}, saved)
    assert found.other == {"a": "8 of 10 lines are the checkpoint's"}
    assert found.missed == {"elsewhere": "6 of 7 lines are in b, the others nowhere"}


def test_a_smaller_vocabulary_is_lines_of_the_larger_one() -> None:
    saved = state((20, 6))
    assert trace({"a": saved["a"][:13]}, saved).held == {"a": Origin(("a",), BY_LINES)}


def test_a_prefix_that_is_stripped() -> None:
    saved = {f"module.{key}": value for key, value in trained(Boxes()).items()}
    model = Boxes()
    model.load_state_dict({key.removeprefix("module."): value for key, value in saved.items()})
    found = trace(model.state_dict(), saved)
    assert len(found.held) == found.total == len(saved)
    assert (found.missed, found.constants, found.unused) == ({}, {}, [])


def test_a_wrong_prefix_reaches_nothing() -> None:
    saved = {f"module.{key}": value for key, value in trained(Boxes()).items()}
    model = Boxes()
    model.load_state_dict(saved, strict=False)
    found = trace(model.state_dict(), saved)
    assert found.held == {}
    assert found.evidence == set()
    assert (
        found.missed.keys()
        == {key for key in model.state_dict() if key.endswith(("weight", "bias"))} - found.constants.keys()
    )
    assert "conv1.1.running_mean" in found.constants
    assert found.unused == [key for key, value in saved.items() if value.numel() > 1]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_running_statistics_that_were_forgotten(prefix: str) -> None:
    saved = {f"{prefix}{key}": value for key, value in trained(Boxes()).items()}
    model = Boxes()
    kept = {key.removeprefix(prefix): value for key, value in saved.items() if "running" not in key}
    model.load_state_dict(kept, strict=False)
    found = trace(model.state_dict(), saved)
    forgotten = {key for key in model.state_dict() if "running" in key}
    assert (found.missed if prefix else found.other).keys() == forgotten
    assert found.held.keys() == model.state_dict().keys() - forgotten
    assert set(found.unused) == {f"{prefix}{key}" for key in forgotten}


@pytest.mark.parametrize("prefix", ["", "net."])
def test_q_and_k_swapped(prefix: str) -> None:
    parts = attention() | state((4, 4), names=["out"])
    saved = {f"{prefix}{key}": value for key, value in parts.items()}
    names = {"q.weight": "k.weight", "k.weight": "q.weight", "q.bias": "k.bias", "k.bias": "q.bias"}
    found = trace({names.get(key, key): value for key, value in parts.items()}, saved)
    assert found.other.keys() == names.keys()
    assert f"holds {prefix}k.weight" in found.other["q.weight"]
    assert found.held.keys() == {"v.weight", "v.bias", "out"}


def test_layers_in_another_numbering_are_no_swap() -> None:
    saved = {f"net.layers.{n}.w": torch.randn(5, 5) for n in range(6)} | {"net.embed": torch.randn(4, 5)}
    held = {f"layers.{n - 2}.w": saved[f"net.layers.{n}.w"] for n in range(2, 6)} | {
        "embed": saved["net.embed"]
    }
    found = trace(held, saved)
    assert (found.other, found.missed) == ({}, {})
    assert found.unused == ["net.layers.0.w", "net.layers.1.w"]


def test_blocks_that_are_copies_of_one_another_are_no_swap() -> None:
    one, two = torch.randn(5, 5), torch.randn(5, 5)
    saved = {"net.a.w": one, "net.b.w": one.clone(), "net.c.w": two}
    assert trace({"a.w": one, "b.w": one.clone(), "c.w": two}, saved).other == {}


def test_another_average_of_the_same_file() -> None:
    saved = trained(Boxes(), 1)
    ema = {f"ema.{key}": value for key, value in trained(Boxes(), 2).items() if "num_batches" not in key}
    model = Boxes()
    model.load_state_dict({key.removeprefix("ema."): value for key, value in ema.items()}, strict=False)
    found = trace(model.state_dict(), saved | ema)
    assert found.other["out2.weight"] == "holds ema.out2.weight"
    assert found.other.keys() == saved.keys()  # among them the counters, which were forgotten


def test_a_head_initialised_again() -> None:
    saved = trained(Boxes())
    model = Boxes()
    model.load_state_dict(saved)
    model.out2.reset_parameters()
    found = trace(model.state_dict(), saved)
    assert found.other == {"out2.weight": "", "out2.bias": ""}
    assert len(found.held) == len(saved) - 2


def test_constants_are_no_evidence_either_way() -> None:
    saved = state((4, 6))
    held = {
        "x.a": saved["a"],
        "x.zeros": torch.zeros(6),
        "x.ones": torch.ones(3, 2),
        "x.position_ids": torch.arange(7).expand(1, -1),
        "x.count": torch.tensor(0),
        "x.half": torch.full((3,), 0.5),
        "x.slope": torch.tensor([0.25]),
    }
    found = trace(held, saved)
    assert found.constants == {
        "x.zeros": "zeros",
        "x.ones": "ones",
        "x.position_ids": "0, 1, 2, …",
        "x.count": "zeros",
        "x.half": "0.5 everywhere",
        "x.slope": "0.25",
    }
    assert found.evidence == {"x.a"}


def test_a_constant_that_the_checkpoint_has_is_held_and_no_evidence() -> None:
    saved = {"net.fc.weight": torch.randn(4, 4), "net.fc.bias": torch.zeros(4), "net.ids": torch.arange(5)}
    held = {key.removeprefix("net."): value.clone() for key, value in saved.items()}
    found = trace(held, saved)
    assert found.held.keys() == held.keys()
    assert found.evidence == {"fc.weight"}
    assert found.unused == []


def test_tied_names_are_found_together() -> None:
    saved = trained(Words())
    del saved["head.weight"]
    model = Words()
    model.load_state_dict(saved, strict=False)
    found = trace(model.state_dict(), saved)
    assert found.held["head.weight"] == found.held["embed.weight"] == Origin(("embed.weight",))


def test_one_tensor_in_two_places() -> None:
    saved = state((5, 6))
    found = trace({"a": saved["a"], "target.a": saved["a"].clone()}, saved)
    assert found.held == {"a": Origin(("a",)), "target.a": Origin(("a",))}


def test_values_beside_an_infinite_one_are_compared() -> None:
    saved = {"a": torch.tensor([math.inf, 1.0, 2.0])}
    recipe = Recipe(scale("a", 3.0))
    held = {"a": saved["a"] * 3}
    computed = Computed(recipe, saved, held, recipe.run(saved, held))
    assert trace(held, recipe.apply(saved, held), computed).held.keys() == {"a"}
    held["a"][2] += 1
    assert trace(held, recipe.apply(saved, held), computed).other.keys() == {"a"}


def test_not_a_number_and_the_sign_of_zero_are_compared_by_their_bits() -> None:
    saved = {"a": torch.tensor([float("nan"), 0.0, 1.0]), "b": torch.tensor([0.0, 2.0])}
    assert trace({"a": saved["a"].clone()}, saved).held.keys() == {"a"}
    assert trace({"b": torch.tensor([-0.0, 2.0])}, saved).other.keys() == {"b"}


def test_tensors_without_values_are_never_held() -> None:
    saved = state((3, 4))
    assert trace({"a": torch.empty(3, 4, device="meta")}, saved).missed.keys() == {"a"}
    assert trace({"b": torch.empty(3, 4, device="meta")}, saved).missed.keys() == {"b"}


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.complex64, torch.float8_e4m3fn]
)
def test_every_kind_of_number(dtype: torch.dtype) -> None:
    saved = {name: (torch.randn(12, 8) * 3).floor().to(torch.int8).to(dtype) for name in ("a", "b")}
    if dtype == torch.bool:
        saved = {name: torch.rand(12, 8) > 0.5 for name in saved}
    found = trace({"both": torch.cat([saved["a"], saved["b"]]), "x.a": saved["a"].t()}, saved)
    assert found.held.keys() == {"both", "x.a"}


@given(st.data())
@settings(max_examples=30)
def test_whatever_a_loader_does_to_the_lines_is_recognised(data: st.DataObject) -> None:
    """Fused from several tensors, in any order of lines, transposed or not, in a narrower dtype or not."""
    width = data.draw(st.integers(4, 9))
    heights = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    saved = state(*((height, width) for height in heights), seed=data.draw(st.integers(0, 99)))
    lines = torch.cat(list(saved.values()))
    held = lines[torch.tensor(data.draw(st.permutations(range(len(lines)))))]
    if data.draw(st.booleans()):
        held = held.t().contiguous()
    held = held.to(data.draw(st.sampled_from([torch.float32, torch.float16, torch.float64])))
    found = trace({"fused": held}, saved)
    assert found.held == {"fused": Origin(tuple(saved), BY_LINES)}
    assert found.unused == []
    position = data.draw(st.integers(0, held.numel() - 1))
    held.view(-1)[position] += 1
    assert trace({"fused": held}, saved).held == {}
