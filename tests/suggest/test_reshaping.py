from __future__ import annotations

import pytest
from torch import nn

from pytest_ckptcompat import append, pad, reduce, repeat_channels, reshape, select, tile, transpose, widen
from pytest_ckptcompat.suggest.changes import Changes
from pytest_ckptcompat.suggest.reshaping import reshapes

NET = {
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
GREY = reduce("conv1.weight", dim=1, groups=1, reduction="sum")


def found(old, new):
    return reshapes(Changes(old, new))


@pytest.mark.parametrize(
    ("changed", "operators"),
    [
        pytest.param({}, [], id="nothing changed"),
        pytest.param(
            {"out2.weight": (14, 256), "out2.bias": (14,)}, [tile("out2.*", dim=0)], id="more outputs"
        ),
        pytest.param(
            {"out2.weight": (2, 256), "out2.bias": (2,)},
            [select("out2.*", dim=0, index=[0, 1])],
            id="fewer outputs are the first ones",
        ),
        pytest.param({"conv1.weight": (8, 4, 3, 3)}, [repeat_channels("conv1.weight")], id="more channels"),
        pytest.param({"conv1.weight": (8, 1, 3, 3)}, [GREY], id="fewer channels"),
        pytest.param({"conv1.weight": (8, 2, 3, 3)}, [], id="channels that do not divide have no sum"),
        pytest.param(
            {"fc1.weight": (512, 72), "fc1.bias": (512,), "out1.weight": (1, 512), "out2.weight": (4, 512)},
            [widen("fc1", ["out1", "out2"])],
            id="a wider layer with two consumers",
        ),
        pytest.param(
            {"conv1.weight": (8, 1, 3, 3), "out2.weight": (14, 256), "out2.bias": (14,)},
            [GREY, tile("out2.*", dim=0)],
            id="several kinds together",
        ),
        pytest.param({"out2.weight": (4, 300)}, [], id="inputs of one of two consumers"),
        pytest.param({"fc1.weight": (100, 50)}, [], id="outputs and inputs"),
        pytest.param({"conv1.weight": (8, 3, 4, 4)}, [], id="an even kernel"),
        pytest.param({"conv1.weight": (8, 3, 1, 1)}, [], id="a smaller kernel"),
        pytest.param({"conv1.weight": (8, 4, 5, 5)}, [], id="a larger kernel of more channels"),
    ],
)
def test_changes_of_a_small_network(changed, operators):
    assert found(NET, NET | changed) == operators


def test_a_wider_hidden_layer_takes_its_norm_and_its_consumers_along():
    wider = {
        key: (16, *shape[1:]) if key.startswith(("conv1", "bn1")) and shape else shape
        for key, shape in NET.items()
    }
    wider["fc1.weight"] = (256, 144)
    assert found(NET, wider) == [widen("conv1", ["fc1"], norms=["bn1"])]


def test_new_words_begin_at_the_mean():
    old = {"wte.weight": (100, 8), "lm_head.weight": (100, 8), "h.0.weight": (8, 8)}
    new = {**old, "wte.weight": (104, 8), "lm_head.weight": (104, 8)}
    assert found(old, new) == [
        append("wte.weight", dim=0, init="mean"),
        append("lm_head.weight", dim=0, init="mean"),
    ]


def test_transposed_weights_take_square_ones_of_the_same_name_along():
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
    assert found(conv1d, linear) == [transpose("h.*.weight")]


def test_a_square_weight_beside_transposed_ones_is_not_guessed():
    old = {"attn.q.weight": (4, 8), "attn.k.weight": (4, 4)}
    assert found(old, {**old, "attn.q.weight": (8, 4)}) == []


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
def test_a_larger_kernel_has_zeros_around_it(old, new):
    assert found({"conv.weight": old}, {"conv.weight": new}) == [pad("conv.weight")]


@pytest.mark.parametrize(
    ("old", "new"),
    [((8, 8, 1, 1), (8, 8)), ((8, 4), (8, 4, 1)), ((), (1,)), ((1, 64), (64,)), ((4,), (4, 1))],
)
def test_the_same_numbers_in_another_shape(old, new):
    assert found({"x.weight": old}, {"x.weight": new}) == [reshape("x.weight")]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"conv.weight": (0, 3, 3, 3), "fc.weight": (5, 8)},
            {"conv.weight": (2, 3, 3, 3), "fc.weight": (5, 16)},
        ),
        ({"head.weight": (0, 4), "head.bias": (0,)}, {"head.weight": (5, 4), "head.bias": (5,)}),
    ],
)
def test_layers_without_outputs_are_no_pattern_for_more(old, new):
    assert not [operator for operator in found(old, new) if isinstance(operator, widen)]


def test_a_norm_of_no_units_is_not_grown():
    sizes = ({"norm.weight": (count,), "norm.bias": (count,)} for count in (0, 8))
    assert reshapes(Changes(*sizes, {"norm": nn.LayerNorm(8)})) == []


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("patch_embed.proj.weight", (8, 3, 16, 16), (8, 3, 32, 32)),  # may be no kernel, or has no centre
        ("pos_embed.weight", (8, 3, 7), (8, 3, 9)),
        ("mixed.weight", (1, 3, 255), (1, 3, 511)),
        ("scale", (8, 1, 1), (8, 3, 3)),
        ("x.weight", (8, 1, 1, 1), (1, 8)),  # the numbers may have changed places
        ("x.weight", (6, 10), (4, 5, 3)),
        ("x.weight", (8, 4, 1), (4, 8)),
    ],
)
def test_a_change_that_may_mean_something_else_is_not_guessed(key, old, new):
    assert found({key: old}, {key: new}) == []
