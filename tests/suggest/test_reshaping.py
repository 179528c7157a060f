from __future__ import annotations

import pytest

from pytest_ckptcompat.suggest.changes import Changes
from pytest_ckptcompat.suggest.reshaping import reshapes

Shapes = dict[str, tuple[int, ...]]

NET: Shapes = {
    "conv1.weight": (8, 3, 3, 3),
    "conv1.bias": (8,),
    "bn1.weight": (8,),
    "bn1.bias": (8,),
    "bn1.running_mean": (8,),
    "bn1.running_var": (8,),
    "bn1.num_batches_tracked": (),
    "fc1.weight": (256, 72),
    "fc1.bias": (256,),
    "out1.weight": (1, 256),
    "out1.bias": (1,),
    "out2.weight": (4, 256),
    "out2.bias": (4,),
}


def steps_of(old: Shapes, new: Shapes) -> list[tuple[str, tuple[object, ...], dict[str, object]]]:
    steps = reshapes(Changes(old, new))
    return [(step.operator, step.arguments, step.options) for step in steps]


def test_the_origin_story() -> None:
    grown = {**NET, "out2.weight": (14, 256), "out2.bias": (14,)}
    assert steps_of(NET, grown) == [("tile", ("out2.*",), {"dim": 0})]


def test_nothing_changed_is_nothing_to_do() -> None:
    assert steps_of(NET, NET) == []


def test_fewer_outputs_are_the_first_ones() -> None:
    shrunk = {**NET, "out2.weight": (2, 256), "out2.bias": (2,)}
    assert steps_of(NET, shrunk) == [("select", ("out2.*",), {"dim": 0, "index": [0, 1]})]


@pytest.mark.parametrize(
    ("channels", "step"),
    [
        (4, ("repeat_channels", ("conv1.weight",), {})),
        (1, ("reduce", ("conv1.weight",), {"dim": 1, "groups": 1, "op": "sum"})),
    ],
)
def test_another_number_of_input_channels(channels: int, step: tuple[object, ...]) -> None:
    assert steps_of(NET, {**NET, "conv1.weight": (8, channels, 3, 3)}) == [step]


def test_channels_that_do_not_divide_have_no_sum() -> None:
    assert steps_of(NET, {**NET, "conv1.weight": (8, 2, 3, 3)}) == []


@pytest.mark.parametrize(
    ("key", "old", "new", "options"),
    [
        ("pos_embed", (1, 197, 64), (1, 577, 64), {"size": (24, 24), "prefix_tokens": 1}),
        ("pos_embed", (1, 198, 64), (1, 578, 64), {"size": (24, 24), "prefix_tokens": 2}),
        ("embeddings.position_embedding.weight", (50, 64), (197, 64), {"size": (14, 14), "prefix_tokens": 1}),
        ("blocks.0.attn.relative_position_bias_table", (169, 4), (729, 4), {"size": (27, 27)}),
        ("pos_embed", (1, 577, 64), (1, 197, 64), {"size": (14, 14), "prefix_tokens": 1}),
    ],
)
def test_positions_of_another_grid(
    key: str, old: tuple[int, ...], new: tuple[int, ...], options: dict[str, object]
) -> None:
    assert steps_of({key: old}, {key: new}) == [("resample", (key,), options)]


@pytest.mark.parametrize("key", ["wpe.weight", "position_embeddings.weight"])
def test_positions_of_a_text_are_no_grid(key: str) -> None:
    line = {"size": (4096, 1), "mode": "bilinear", "old_size": (1024, 1)}
    assert steps_of({key: (1024, 8)}, {key: (4096, 8)}) == [("resample", (key,), line)]


def test_positions_beside_a_convolution_are_a_grid() -> None:
    old = {"patch.weight": (8, 3, 16, 16), "pos_embed": (1, 196, 8)}
    assert steps_of(old, {**old, "pos_embed": (1, 576, 8)}) == [
        ("resample", ("pos_embed",), {"size": (24, 24)})
    ]


def test_new_words_begin_at_the_mean() -> None:
    old = {"wte.weight": (100, 8), "lm_head.weight": (100, 8), "h.0.weight": (8, 8)}
    new = {**old, "wte.weight": (104, 8), "lm_head.weight": (104, 8)}
    assert steps_of(old, new) == [
        ("append", ("wte.weight",), {"dim": 0, "init": "mean"}),
        ("append", ("lm_head.weight",), {"dim": 0, "init": "mean"}),
    ]


def test_transposed_weights_take_square_ones_of_the_same_name_along() -> None:
    conv1d = {
        f"h.{i}.{name}": shape
        for i in range(3)
        for name, shape in {
            "attn.c_attn.weight": (8, 24),
            "attn.c_attn.bias": (24,),
            "attn.c_proj.weight": (8, 8),
            "mlp.c_fc.weight": (8, 32),
            "mlp.c_proj.weight": (32, 8),
        }.items()
    } | {"wte.weight": (100, 8)}
    linear = {key: shape[::-1] if key.startswith("h") else shape for key, shape in conv1d.items()}
    assert steps_of(conv1d, linear) == [("transpose", ("h.*.weight",), {})]


def test_a_square_weight_beside_transposed_ones_is_not_guessed() -> None:
    old = {"attn.q.weight": (4, 8), "attn.k.weight": (4, 4)}
    assert steps_of(old, {**old, "attn.q.weight": (8, 4)}) == []


def test_a_wider_hidden_layer_takes_its_norm_and_its_consumers_along() -> None:
    wider = {
        key: (16, *shape[1:]) if key.startswith(("conv1", "bn1")) and shape else shape
        for key, shape in NET.items()
    }
    wider["fc1.weight"] = (256, 144)
    assert steps_of(NET, wider) == [("widen", ("conv1", ["fc1"]), {"norms": ["bn1"]})]


def test_a_wider_layer_with_two_consumers() -> None:
    wider = {
        **NET,
        "fc1.weight": (512, 72),
        "fc1.bias": (512,),
        "out1.weight": (1, 512),
        "out2.weight": (4, 512),
    }
    assert steps_of(NET, wider) == [("widen", ("fc1", ["out1", "out2"]), {})]


@pytest.mark.parametrize(
    ("key", "new"),
    [
        ("out2.weight", (4, 300)),
        ("fc1.weight", (100, 50)),
        ("conv1.weight", (8, 3, 4, 4)),
        ("conv1.weight", (8, 3, 1, 1)),
        ("conv1.weight", (8, 4, 5, 5)),
    ],
)
def test_a_change_that_nothing_explains_is_not_guessed(key: str, new: tuple[int, ...]) -> None:
    assert steps_of(NET, {**NET, key: new}) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((8, 3, 3, 3), (8, 3, 5, 5)),
        ((8, 3, 1, 1), (8, 3, 3, 3)),
        ((8, 3, 3, 3), (8, 3, 3, 7)),
        ((8, 3, 3), (8, 3, 9)),
        ((8, 3, 1, 3, 3), (8, 3, 3, 3, 3)),
    ],
)
def test_a_larger_kernel_has_zeros_around_it(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    assert steps_of({"conv.weight": old}, {"conv.weight": new}) == [("pad", ("conv.weight",), {})]


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("patch_embed.proj.weight", (8, 3, 16, 16), (8, 3, 32, 32)),
        ("pos_embed.weight", (8, 3, 7), (8, 3, 9)),
        ("mixed.weight", (1, 3, 255), (1, 3, 511)),
        ("scale", (8, 1, 1), (8, 3, 3)),
    ],
)
def test_what_may_be_no_kernel_or_has_no_centre_is_not_guessed(
    key: str, old: tuple[int, ...], new: tuple[int, ...]
) -> None:
    assert steps_of({key: old}, {key: new}) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [((8, 8, 1, 1), (8, 8)), ((8, 4), (8, 4, 1)), ((), (1,)), ((1, 64), (64,)), ((4,), (4, 1))],
)
def test_the_same_numbers_in_another_shape(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    assert steps_of({"x.weight": old}, {"x.weight": new}) == [("reshape", ("x.weight",), {})]


@pytest.mark.parametrize(("old", "new"), [((8, 1, 1, 1), (1, 8)), ((6, 10), (4, 5, 3)), ((8, 4, 1), (4, 8))])
def test_numbers_that_may_have_changed_places_are_not_reshaped(
    old: tuple[int, ...], new: tuple[int, ...]
) -> None:
    assert steps_of({"x.weight": old}, {"x.weight": new}) == []


def test_changes_of_several_kinds_come_together() -> None:
    new = {**NET, "conv1.weight": (8, 1, 3, 3), "out2.weight": (14, 256), "out2.bias": (14,)}
    assert steps_of(NET, new) == [
        ("reduce", ("conv1.weight",), {"dim": 1, "groups": 1, "op": "sum"}),
        ("tile", ("out2.*",), {"dim": 0}),
    ]
