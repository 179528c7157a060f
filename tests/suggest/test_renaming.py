from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pace import within
from torch import nn

from pytest_ckptcompat import Recipe, add_prefix, rename, strip_prefix
from pytest_ckptcompat.core.collection import paused
from pytest_ckptcompat.suggest.changes import NO_MODULES
from pytest_ckptcompat.suggest.evidence import likeness
from pytest_ckptcompat.suggest.renaming import renames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from pytest_ckptcompat.recipes.operators.rename import Renaming

Shapes = dict[str, tuple[int, ...]]

ENCODER: Shapes = {
    f"layers.{i}.{name}": shape
    for i in range(12)
    for name, shape in {
        "attn.q.weight": (64, 64),
        "attn.k.weight": (64, 64),
        "attn.v.weight": (64, 64),
        "attn.o.weight": (64, 64),
        "attn.o.bias": (64,),
        "mlp.up.weight": (256, 64),
        "mlp.down.weight": (64, 256),
        "norm1.weight": (64,),
        "norm1.bias": (64,),
    }.items()
}
HEAD: Shapes = {"head.weight": (10, 64), "head.bias": (10,)}


def found(checkpoint: Shapes, model: Shapes) -> list[Renaming]:
    return renames(checkpoint, model)[0]


def mapping(
    checkpoint: Shapes, model: Shapes, modules: Mapping[str, nn.Module] = NO_MODULES
) -> dict[str, str]:
    """Every key of the checkpoint, and what it is called at the end."""
    _, renamed = renames(checkpoint, model, modules)
    return dict(zip(checkpoint, renamed, strict=True))


def called(change: Callable[[str], str], shapes: Shapes) -> Shapes:
    return {change(key): shape for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (lambda key: f"module.{key}", lambda key: key, [strip_prefix("module.")]),
        (lambda key: f"module._orig_mod.{key}", lambda key: key, [strip_prefix("module._orig_mod.")]),
        (lambda key: key, lambda key: f"model.{key}", [add_prefix("model.")]),
        (lambda key: f"net.{key}", lambda key: f"backbone.{key}", [rename("net.*", "backbone.*")]),
        (
            lambda key: key,
            lambda key: key.replace("layers.", "encoder.blocks."),
            [rename("layers.*", "encoder.blocks.*")],
        ),
        (
            lambda key: key.replace("mlp.up", "mlp.fc_in"),
            lambda key: key,
            [rename("layers.*.mlp.fc_in.*", "layers.*.mlp.up.*")],
        ),
        (
            lambda key: key.replace("layers.3.", "layers.3.module."),
            lambda key: key,
            [rename("layers.3.module.*", "layers.3.*")],
        ),
        (
            lambda key: key.replace("norm1.weight", "norm1.gamma").replace("norm1.bias", "norm1.beta"),
            lambda key: key,
            [
                rename("layers.*.norm*.gamma", "layers.*.norm*.weight"),
                rename("layers.*.norm*.beta", "layers.*.norm*.bias"),
            ],
        ),
        (
            lambda key: "module." + key.replace("head", "classifier"),
            lambda key: key,
            [strip_prefix("module."), rename("classifier.*", "head.*")],
        ),
    ],
    ids=lambda case: "",
)
def test_one_change_of_name_is_one_step(
    old: Callable[[str], str], new: Callable[[str], str], expected: list[Renaming]
) -> None:
    whole = ENCODER | HEAD
    checkpoint, model = called(old, whole), called(new, whole)
    assert found(checkpoint, model) == expected
    assert mapping(checkpoint, model) == {old(key): new(key) for key in whole}


def test_projections_of_one_shape_are_told_apart_by_their_names() -> None:
    names = {
        "attn.q.": "attention.query.",
        "attn.k.": "attention.key.",
        "attn.v.": "attention.value.",
        "attn.o.": "attention.out_proj.",
    }

    def old(key: str) -> str:
        for short, long in names.items():
            key = key.replace(short, long)
        return key

    assert mapping(called(old, ENCODER), ENCODER) == {old(key): key for key in ENCODER}


def test_names_that_say_nothing_are_not_guessed() -> None:
    rest = {"stem.weight": (8, 3), "stem.bias": (8,)}
    checkpoint = {"one.weight": (4, 4), "two.weight": (4, 4)} | rest
    model = {"red.weight": (4, 4), "blue.weight": (4, 4)} | rest
    assert found(checkpoint, model) == []


def test_two_submodels_that_could_both_be_meant_are_not_guessed() -> None:
    checkpoint = called(lambda key: f"generator.{key}", ENCODER) | called(
        lambda key: f"critic.{key}", ENCODER
    )
    assert found(checkpoint, ENCODER) == []


def test_a_parameter_that_went_is_not_taken_for_one_that_came() -> None:
    checkpoint = {**HEAD, "aux.weight": (3, 3)}
    model = {**HEAD, "extra.weight": (3, 3)}
    assert found(checkpoint, model) == []


def test_a_module_in_the_place_of_another_is_that_module() -> None:
    body = {"stem.weight": (8, 3), "stem.bias": (8,)}
    checkpoint = {**body, "zig.weight": (2, 8), "zig.bias": (2,)}
    model = {**body, "quux.weight": (2, 8), "quux.bias": (2,)}
    assert found(checkpoint, model) == [rename("zig.*", "quux.*")]


def test_what_matches_already_is_left_alone() -> None:
    checkpoint = {"a.weight": (4, 4), "module.a.weight": (4, 4), "b.weight": (5, 5)}
    model = {"a.weight": (4, 4), "b.weight": (5, 5)}
    assert found(checkpoint, model) == []


@pytest.mark.parametrize("gone", [True, False])
def test_layers_move_up_or_down_where_others_without_weights_came_or_went(gone: bool) -> None:
    dense = {i: {"weight": (8, 8), "bias": (8,)} for i in (1, 2)} | {
        0: {"weight": (8, 4), "bias": (8,)},
        3: {"weight": (2, 8), "bias": (2,)},
    }
    close = {f"net.{i}.{leaf}": shape for i in range(4) for leaf, shape in dense[i].items()}
    wide = {f"net.{2 * i}.{leaf}": shape for i in range(4) for leaf, shape in dense[i].items()}
    checkpoint, model = (wide, close) if gone else (close, wide)
    row = {"net": nn.Sequential(*(nn.Identity() for _ in range(4 if gone else 7)))}
    assert mapping(checkpoint, model, row) == dict(zip(checkpoint, model, strict=True))


HEAD_SHAPES: Shapes = {"weight": (4, 8, 1, 1), "bias": (4,)}


def heads(numbers: Iterable[int], shapes: Callable[[int], Shapes] = lambda place: HEAD_SHAPES) -> Shapes:
    return {
        f"heads.{number}.{leaf}": shape
        for place, number in enumerate(numbers)
        for leaf, shape in shapes(place).items()
    }


@pytest.mark.parametrize("container", [nn.ModuleDict, nn.ModuleList, nn.Module, None])
@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize(("old", "new"), [((8, 16, 32), (16, 32, 64)), ((0, 1, 2), (1, 2, 3))])
def test_what_fits_under_its_number_is_not_moved_unless_numbers_are_places(
    container: type[nn.Module] | None, wrapper: str, old: tuple[int, ...], new: tuple[int, ...]
) -> None:
    modules = {"heads": container()} if container else NO_MODULES
    found = mapping(called(lambda key: wrapper + key, heads(old)), heads(new), modules)
    assert found == {wrapper + key: key for key in heads(old)}


@pytest.mark.parametrize("container", [nn.ModuleDict, nn.ModuleList])
def test_numbers_change_where_shapes_say_so(container: type[nn.Module]) -> None:
    def shapes(place: int) -> Shapes:
        return {"weight": (4, 8 << place), "bias": (4,)}

    checkpoint, model = heads((8, 16, 32), shapes), heads((16, 32, 64), shapes)
    found = mapping(checkpoint, model, {"heads": container()})
    assert found == dict(zip(checkpoint, model, strict=True))


def test_names_of_which_none_is_left_are_not_matched_by_their_order() -> None:
    assert steps_of_heads(nn.ModuleDict()) == []
    assert steps_of_heads(nn.ModuleList()) != []


def steps_of_heads(container: nn.Module) -> list[Renaming]:
    return renames(heads((8, 16)), heads((32, 64)), {"heads": container})[0]


def test_layers_that_were_numbered_from_one_in_their_names() -> None:
    checkpoint = called(lambda key: key.replace("heads.", "head"), heads((1, 2, 3)))
    model = heads((0, 1, 2))
    found = mapping(checkpoint, model, {"heads": nn.ModuleList()})
    assert found == dict(zip(checkpoint, model, strict=True))


@pytest.mark.parametrize("leaves", [("weight",), ("weight", "bias")])
def test_a_numbered_name_does_not_pass_by_one_that_stays(leaves: tuple[str, ...]) -> None:
    def norms(*numbers: int) -> Shapes:
        return {f"blocks.{i}.norm{n}.{leaf}": (8,) for i in range(3) for n in numbers for leaf in leaves}

    assert found(norms(1, 2), norms(2, 3)) == []
    assert found(norms(1), norms(3)) == [rename("*.norm1.*", "*.norm3.*")]


def test_a_weight_never_becomes_a_bias() -> None:
    assert found({**ENCODER, "one.weight": (8,)}, {**ENCODER, "one.bias": (8,)}) == []
    assert found({**ENCODER, "one.gamma": (8,)}, {**ENCODER, "one.weight": (8,)}) != []


def test_a_key_that_is_renamed_and_grown_is_found_by_its_name() -> None:
    checkpoint = {"module.stem.weight": (8, 3), "module.fc_head.weight": (4, 8), "module.fc_head.bias": (4,)}
    model = {"stem.weight": (8, 3), "head.weight": (14, 8), "head.bias": (14,)}
    assert found(checkpoint, model) == [strip_prefix("module."), rename("fc_head.*", "head.*")]


def test_keys_with_glob_characters_are_renamed_by_their_exact_names() -> None:
    checkpoint = {"a[0].weight": (4, 3), "a[0].bias": (4,), "b.weight": (2, 2)}
    model = {"a0.weight": (4, 3), "a0.bias": (4,), "b.weight": (2, 2)}
    assert found(checkpoint, model) == [
        rename("a[0].weight", "a0.weight"),
        rename("a[0].bias", "a0.bias"),
    ]


words = st.sampled_from(["stem", "attn", "mlp", "norm", "head", "up", "down", "0", "1", "2", "10"])
trees = st.dictionaries(
    st.lists(words, min_size=1, max_size=4).map(".".join), st.integers(2, 9), min_size=2, max_size=25
).map(lambda tree: {f"{name}.w": (size, place + 2) for place, (name, size) in enumerate(tree.items())})
wrappers = st.sampled_from(["module.", "_orig_mod.", "module._orig_mod.", "wrapped.net."])


@given(trees, wrappers, st.booleans())
def test_any_wrapper_is_found_and_the_names_under_it_kept(tree: Shapes, wrapper: str, wrapped: bool) -> None:
    under = called(lambda key: wrapper + key, tree)
    checkpoint, model = (under, tree) if wrapped else (tree, under)
    assert mapping(checkpoint, model) == dict(zip(checkpoint, model, strict=True))


@given(trees, st.data())
def test_whatever_is_found_gives_no_key_two_names_and_no_name_two_keys(
    tree: Shapes, data: st.DataObject
) -> None:
    keys = list(tree)
    others = data.draw(
        st.lists(st.lists(words, min_size=1, max_size=4).map(".".join), min_size=1, max_size=25)
    )
    model = dict(zip(others, data.draw(st.permutations(list(tree.values()))), strict=False))
    _, renamed = renames(tree, model)
    assert len(renamed) == len(keys)
    for key, name in zip(keys, renamed, strict=True):
        assert renamed[name] == tree[key]
        if key in model:
            assert name == key or tree[key] != model[key]


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key.replace("attn", "self_attention").replace("mlp", "ffn"),
        lambda key: key[::-1],
        lambda key: f"{key}_old",
    ],
    ids=["blocks", "unrelated", "leaves"],
)
@pytest.mark.parametrize("irregular", [False, True])
def test_two_thousand_keys_take_well_under_a_second(change: Callable[[str], str], irregular: bool) -> None:
    if irregular:
        whole = {
            f"{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}.weight": (8, 8)
            for i in range(2000)
        }
    else:
        whole = {
            key.replace("layers", f"stack{i}"): shape for i in range(20) for key, shape in ENCODER.items()
        }
    with paused(), within(1):  # as in a check: other tests' objects are no part of the search
        renames(called(change, whole), whole)


@pytest.mark.parametrize(
    ("one", "better", "worse"),
    [
        ("q", "q_proj", "k_proj"),
        ("query", "q_proj", "v_proj"),
        ("gamma", "weight", "bias"),
        ("beta", "bias", "weight"),
        ("selfAttn", "self_attention", "cross_attention"),
        ("classifier", "head", "stem"),
        ("fc1", "linear1", "conv1"),
        ("moving_variance", "running_var", "running_mean"),
    ],
)
def test_likeness_of_names(one: str, better: str, worse: str) -> None:
    assert likeness(one, better) > likeness(one, worse) + 0.15


# -- random trees in which many shapes are the same ---------------------------------------------------------

WORDS = [
    *("stem", "attn", "mlp", "norm", "head", "up", "down", "fc", "conv", "proj", "gate", "enc", "dec"),
    *("body", "q", "k", "v", "out", "embed", "layer", "block"),
]


def random_tree(rng: random.Random, depth: int = 0) -> Shapes:
    tree: Shapes = {}
    for name in rng.sample(WORDS, rng.randint(1, 4)):
        kind = rng.random()
        if depth < 2 and kind < 0.65:
            inner = random_tree(rng, depth + 1)
            copies = [""] if kind < 0.45 else [f".{i}" for i in range(rng.randint(2, 4))]
            tree |= {f"{name}{copy}.{key}": shape for copy in copies for key, shape in inner.items()}
        else:
            tree[f"{name}.weight"] = (rng.choice([8, 16]), rng.choice([8, 16]))
            if rng.random() < 0.7:
                tree[f"{name}.bias"] = tree[f"{name}.weight"][:1]
    return tree


def random_names(rng: random.Random, tree: Shapes) -> dict[str, str]:
    """Wrappers put on, and modules renamed: to something alike, or to something else."""
    names = {key: key for key in tree}
    for _ in range(rng.randint(1, 3)):
        parts = sorted(
            {part for name in names.values() for part in name.split(".")[:-1] if not part.isdigit()}
        )
        if rng.random() < 0.3:
            wrapper = rng.choice(["module", "_orig_mod", "net"])
            names = {key: f"{wrapper}.{name}" for key, name in names.items()}
        else:
            old = rng.choice(parts or ["none"])
            new = rng.choice(
                [f"{old}s", f"{old}_new", old.upper(), f"{old}2", *(f"{w}X" for w in rng.sample(WORDS, 4))]
            )
            if new not in parts:
                names = {
                    key: ".".join(new if part == old else part for part in name.split("."))
                    for key, name in names.items()
                }
    return names


def test_of_random_renames_nearly_all_are_found_and_hardly_one_is_wrong() -> None:
    right, wrong, left = 0, [], 0
    for seed in range(300):
        rng = random.Random(seed)
        tree = random_tree(rng)
        names = random_names(rng, tree)
        if rng.random() < 0.5:
            checkpoint, truth = tree, names
        else:
            checkpoint = {names[key]: shape for key, shape in tree.items()}
            truth = {name: key for key, name in names.items()}
        model = {truth[key]: shape for key, shape in checkpoint.items()}
        if mapping(checkpoint, model) == truth:
            right += 1
        elif all(name in model for name in mapping(checkpoint, model).values()):
            wrong.append(seed)
        else:
            left += 1
    assert len(wrong) <= 1, wrong
    assert right >= 250


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(
            {"conv1.weight": (4, 3), "conv1.bias": (4,), "conv2.weight": (4, 4), "conv2.bias": (4,)},
            {"conv1.weight": (4, 3), "bn1.bias": (4,), "conv2.weight": (4, 4), "bn2.bias": (4,)},
            id="a bias leaves its layer",
        ),
        pytest.param(
            {"body.weight": (4, 4), "head.transform.dense.weight": (4, 4), "head.transform.dense.bias": (4,)}
            | {"head.transform.norm.weight": (4,), "head.transform.norm.bias": (4,)},
            {"body.weight": (4, 4), "pooler.dense.weight": (4, 4), "pooler.dense.bias": (4,)},
            id="a part of a module that is gone",
        ),
        pytest.param(
            {"body.weight": (4, 4), "pooler.dense.weight": (4, 4), "pooler.dense.bias": (4,)},
            {"body.weight": (4, 4), "head.transform.dense.weight": (4, 4), "head.transform.dense.bias": (4,)}
            | {"head.transform.norm.weight": (4,), "head.transform.norm.bias": (4,)},
            id="a part of a module that is new",
        ),
    ],
)
def test_a_shape_alone_does_not_make_one_layer_of_two(old, new):
    assert renames(old, new)[0] == []


def convolutions(name, shift=0):
    """Four convolutions, two of one shape, each with its norm; `name` says what a layer is called."""
    sizes = {1: (8, 3), 2: (8, 8), 3: (8, 8), 4: (16, 8)}
    conv, norm = name
    shapes = {}
    for number, size in sizes.items():
        shapes[f"{conv.format(number + shift)}.weight"] = (*size, 3, 3)
        shapes[f"{norm.format(number + shift)}.weight"] = size[:1]
    return shapes


@pytest.mark.parametrize(
    ("new", "shift"),
    [
        (("blocks.{}.conv", "blocks.{}.norm"), -1),
        (("layer{}.0", "layer{}.1"), 0),
        (("conv{}", "bn{}"), -1),
        (("conv{}", "bn{}"), 2),
        (("stages.{}.conv", "stages.{}.bn"), 1),
    ],
)
def test_layers_that_are_counted_from_another_number_keep_their_order(new, shift):
    old, wanted = convolutions(("conv{}", "bn{}")), convolutions(new, shift)
    operators, after = renames(old, wanted)
    assert after.keys() == wanted.keys()
    recipe = Recipe(*operators)
    given = recipe.apply({key: torch.tensor(place) for place, key in enumerate(old)}, {})
    came = {key: list(old)[int(value)] for key, value in given.items()}
    assert [came[key] for key in wanted] == list(old)


def test_a_layer_is_not_called_by_its_number_where_another_place_fits_it():
    old = {f"fc{n}.weight": shape for n, shape in enumerate([(6, 5), (6, 6), (3, 6)], 1)}
    new = {"input.weight": (6, 5), "hidden1.weight": (6, 6), "output.weight": (3, 6)}
    _, after = renames(old, new)
    assert "hidden1.weight" not in after or after["hidden1.weight"] == (6, 6)
