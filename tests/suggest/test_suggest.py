"""Broken pairs of small real models: the suggestion as it is printed, pasted, makes the old weights load."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from pace import within
from suggesting import answer, suggested
from torch import nn

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.recipes import operators
from pytest_ckptcompat.recipes.recipe import Recipe
from pytest_ckptcompat.report import terminal
from pytest_ckptcompat.report.report import Report
from pytest_ckptcompat.suggest.search import suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


def pasted(recipe: Recipe, width: int = 80) -> Recipe:
    """The recipe as a user gets it: read off the report, and run as Python."""
    text = terminal.render(Report("c", "m", suggestion=recipe), width, verbosity=2)
    source = text.partition("this recipe would make it load:\n")[2].partition("\npass it as")[0]
    names = {name: getattr(operators, name) for name in dir(operators) if not name.startswith("_")}
    return eval(source.strip(), {"Recipe": Recipe, **names})


def assert_loads(old: nn.Module, new: nn.Module, rename: Callable[[str], str] = str) -> Recipe:
    state_dict = OrderedDict((rename(key), value) for key, value in old.state_dict().items())
    recipe = suggested(state_dict, new)
    assert recipe is not None
    for again in (pasted(recipe), pasted(recipe, 120), Recipe.from_toml(recipe.to_toml())):
        assert again == recipe
        new.load_state_dict(again.apply(state_dict, new.state_dict()), strict=True)
    return recipe


class ONet(nn.Module):
    def __init__(self, outputs: int, channels: int = 3, hidden: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3)
        self.bn1 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 4, hidden)
        self.out1 = nn.Linear(hidden, 1)
        self.out2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.fc(nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)))
        return self.out1(x), self.out2(x)


class Block(nn.Module):
    def __init__(self, names: Mapping[str, str], width: int = 16) -> None:
        super().__init__()
        inner = nn.Module()
        for place in "qkvo":
            inner.add_module(names[place], nn.Linear(width, width))
        self.add_module(names["attn"], inner)
        self.add_module(names["norm"], nn.LayerNorm(width))


SHORT = {"q": "q", "k": "k", "v": "v", "o": "o", "attn": "attn", "norm": "norm"}
LONG = {"q": "query", "k": "key", "v": "value", "o": "out_proj", "attn": "self_attention", "norm": "ln"}


class Encoder(nn.Module):
    def __init__(
        self, names: Mapping[str, str] = SHORT, words: int = 50, layers: int = 4, stack: str = "layers"
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, 16)
        self.add_module(stack, nn.ModuleList(Block(names) for _ in range(layers)))
        self.head = nn.Linear(16, 5)


class Holder(nn.Module):
    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class Conv1D(nn.Module):
    """A linear layer with its weight the other way round."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))


def gpt(linear: Callable[[int, int], nn.Module]) -> nn.Module:
    block = {"c_attn": (8, 24), "c_proj": (8, 8), "c_fc": (8, 32)}
    return Holder(
        wte=nn.Embedding(40, 8),
        h=nn.ModuleList(
            Holder(
                attn=Holder(**{name: linear(*block[name]) for name in ("c_attn", "c_proj")}),
                mlp=Holder(c_fc=linear(8, 32), c_proj=linear(32, 8)),
            )
            for _ in range(3)
        ),
    )


def test_the_origin_story_is_exactly_one_tile_and_perhaps_a_wrapper() -> None:
    assert repr(assert_loads(ONet(4), ONet(14))) == 'Recipe(tile("out2.*", dim=0))'
    recipe = assert_loads(ONet(4), ONet(14), lambda key: f"module.{key}")
    assert repr(recipe) == 'Recipe(strip_prefix("module."), tile("out2.*", dim=0))'


@pytest.mark.parametrize(
    ("wrapper", "expected"),
    [
        ("module.", 'Recipe(strip_prefix("module."))'),
        ("_orig_mod.", 'Recipe(strip_prefix("_orig_mod."))'),
        ("module._orig_mod.", 'Recipe(strip_prefix("module._orig_mod."))'),
        ("model.", 'Recipe(strip_prefix("model."))'),
    ],
)
def test_wrappers(wrapper: str, expected: str) -> None:
    assert repr(assert_loads(ONet(4), ONet(4), lambda key: wrapper + key)) == expected


def test_a_wrapper_that_the_model_now_has() -> None:
    old, new = ONet(4), Holder(model=ONet(4))
    assert repr(assert_loads(old, new)) == 'Recipe(add_prefix("model."))'
    batch = torch.randn(2, 3, 8, 8)
    assert torch.equal(old.eval()(batch)[1], new.eval().model(batch)[1])


def test_wrappers_inside_the_model() -> None:
    def wrapped(key: str) -> str:
        return key.replace("layers.", "_fsdp_wrapped_module.layers.").replace(
            "attn.", "_fsdp_wrapped_module.attn."
        )

    old, new = Encoder(), Encoder()
    assert_loads(old, new, wrapped)
    assert all(torch.equal(value, new.state_dict()[key]) for key, value in old.state_dict().items())


def test_renamed_blocks_and_leaves() -> None:
    old, new = Encoder(), Encoder(LONG, stack="blocks")
    assert_loads(old, new)
    for long, short in (("query", "q"), ("key", "k"), ("value", "v"), ("out_proj", "o")):
        for i in range(4):
            kept = old.layers[i].attn.get_submodule(short).weight
            assert torch.equal(new.blocks[i].self_attention.get_submodule(long).weight, kept)


def test_layers_that_moved_up() -> None:
    layers = [nn.Linear(6, 6) for _ in range(4)]
    with_relu = nn.Sequential(*(each for layer in layers for each in (layer, nn.ReLU())))
    without = nn.Sequential(*(nn.Linear(6, 6) for _ in layers))
    assert_loads(with_relu, without)
    assert all(torch.equal(old.weight, new.weight) for old, new in zip(layers, without, strict=True))
    assert_loads(without, with_relu)


def test_fewer_outputs() -> None:
    old, new = ONet(14), ONet(4)
    assert_loads(old, new)
    assert torch.equal(new.out2.weight, old.out2.weight[:4])


@pytest.mark.parametrize("channels", [1, 4, 6])
def test_another_stem(channels: int) -> None:
    assert_loads(ONet(4), ONet(4, channels))


def test_a_wider_hidden_layer_keeps_the_function() -> None:
    old, new = ONet(4).eval(), ONet(4, hidden=48).eval()
    assert_loads(old, new)
    batch = torch.randn(2, 3, 8, 8)
    assert torch.allclose(old(batch)[1], new(batch)[1], atol=1e-5)


def test_transposed_weights() -> None:
    old, new = gpt(Conv1D), gpt(nn.Linear)
    assert_loads(old, new)
    assert torch.equal(new.h[0].attn.c_proj.weight, old.h[0].attn.c_proj.weight.T)


def test_a_larger_kernel_keeps_the_function() -> None:
    def net(size: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, size, padding=size // 2), nn.ReLU(), nn.Conv2d(4, 2, 3))

    old, new = net(3), net(7)
    assert repr(assert_loads(old, new)) == 'Recipe(pad("0.weight"))'
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(new(x), old(x))


class Attention(nn.Module):
    """Attention that computes queries, keys and values in one layer, or in three."""

    def __init__(self, names: str, width: int = 8, shared: int = 8, bias: bool = True) -> None:
        super().__init__()
        self.names = names.split()
        sizes = [width, shared, shared] if len(self.names) == 3 else [width + 2 * shared]
        for name, size in zip(self.names, sizes, strict=True):
            self.add_module(name, nn.Linear(width, size, bias=bias))
        self.proj, self.sizes = nn.Linear(width, width), [width, shared, shared]

    def forward(self, x: Tensor) -> Tensor:
        joint = torch.cat([self.get_submodule(name)(x) for name in self.names], dim=-1)
        return torch.cat(torch.split(joint, self.sizes, dim=-1)[::-1], dim=-1)


def blocks(names: str, depth: int = 3, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"layers": nn.ModuleList(Holder(attn=Attention(names, **options)) for _ in range(depth))}
    )  # type: ignore[arg-type]


def assert_same_attention(old: nn.Module, new: nn.Module) -> None:
    x = torch.randn(2, 8)
    olds, news = ([m for m in model.modules() if isinstance(m, Attention)] for model in (old, new))
    for one, other in zip(olds, news, strict=True):
        torch.testing.assert_close(other(x), one(x))


@pytest.mark.parametrize(
    "names", ["q k v", "q_proj k_proj v_proj", "query key value", "to_q to_k to_v", "wq wk wv"]
)
@pytest.mark.parametrize("joined", ["qkv", "qkv_proj", "Wqkv", "in_proj"])
def test_three_projections_that_became_one_and_back(names: str, joined: str) -> None:
    q, k, v = names.split()
    three = f'["*.{q}.weight", "*.{k}.weight", "*.{v}.weight"]'
    recipe = assert_loads(old := blocks(names), new := blocks(joined))
    assert repr(recipe).startswith(f'Recipe(concat({three}, "*.{joined}.weight", dim=0), concat(')
    assert_same_attention(old, new)
    recipe = assert_loads(old := blocks(joined), new := blocks(names))
    assert repr(recipe).startswith(f'Recipe(split("*.{joined}.weight", {three}, dim=0), split(')
    assert_same_attention(old, new)


def test_projections_of_grouped_queries_are_cut_at_the_models_sizes() -> None:
    for names in (("q k v", "qkv"), ("qkv", "q k v")):
        old, new = (blocks(each, shared=2, bias=False) for each in names)
        assert len(assert_loads(old, new).operators) == 1
        assert_same_attention(old, new)


@pytest.mark.parametrize(
    ("apart", "joined"), [(("gate_proj", "up_proj"), "gate_up_proj"), (("to_k", "to_v"), "to_kv")]
)
def test_two_projections_that_became_one_and_back(apart: tuple[str, str], joined: str) -> None:
    def layers(**sizes: int) -> nn.Module:
        block = {name: nn.Linear(8, size, bias=False) for name, size in sizes.items()}
        return nn.Sequential(nn.ModuleDict(block), nn.ModuleDict(block))

    two, one = layers(**dict.fromkeys(apart, 6)), layers(**{joined: 12})
    names = f'["*.{apart[0]}.weight", "*.{apart[1]}.weight"]'
    assert repr(assert_loads(two, one)) == f'Recipe(concat({names}, "*.{joined}.weight", dim=0))'
    assert repr(assert_loads(one, two)) == f'Recipe(split("*.{joined}.weight", {names}, dim=0))'


def test_projections_under_a_wrapper_and_other_names_of_their_block() -> None:
    def renamed(key: str) -> str:
        return f"module.{key}".replace("attn", "self_attention")

    for names in (("query key value", "qkv"), ("qkv", "q_proj k_proj v_proj")):
        old, new = map(blocks, names)
        assert_loads(old, new, renamed)


def test_torchs_own_attention_from_three_projections() -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(8, 8) for _ in range(4))

    for old, new in ((Three(), nn.MultiheadAttention(8, 2)), (nn.MultiheadAttention(8, 2), Three())):
        recipe = assert_loads(old, new)
        assert len(recipe.operators) == 2
        joined = (new if hasattr(new, "in_proj_weight") else old).get_parameter("in_proj_weight")
        apart = [getattr(new if hasattr(new, "q_proj") else old, f"{name}_proj").weight for name in "qkv"]
        assert torch.equal(joined, torch.cat(apart))


@pytest.mark.parametrize("joined", ["query_key_value", "c_attn", "fused"])
def test_projections_whose_order_in_one_tensor_is_not_known_are_not_joined(joined: str) -> None:
    for names in ("q k v", "query key value"):
        assert suggested(blocks(names).state_dict(), blocks(joined)) is None
        assert suggested(blocks(joined).state_dict(), blocks(names)) is None


def test_projections_of_some_layers_alone_are_named_so() -> None:
    def mixed(names: str) -> nn.Module:
        return nn.ModuleDict({"self": blocks(names), "cross": blocks("q k v", depth=2)})

    recipe = assert_loads(mixed("q k v"), mixed("qkv"))
    assert '"self.layers.*.attn.q.weight"' in repr(recipe)


def test_projections_of_another_size_are_not_joined() -> None:
    assert suggested(blocks("q k v").state_dict(), blocks("qkv", shared=4)) is None
    assert suggested(blocks("q k v", depth=2).state_dict(), blocks("qkv", depth=3)) is None


def test_what_the_model_lacks_is_dropped_only_if_nothing_else_is_left() -> None:
    old = Holder(net=ONet(4), aux=nn.Linear(3, 3))
    assert repr(assert_loads(old, Holder(net=ONet(4)))) == 'Recipe(drop("aux.*"))'
    assert suggested(old.state_dict(), Holder(net=ONet(4), other=nn.Linear(7, 7))) is None
    assert suggested(old.state_dict(), nn.Identity()) is None


def test_what_is_dropped_and_explains_nothing_is_no_part_of_a_recipe() -> None:
    def experts(count: int) -> nn.Module:
        return Holder(
            router=nn.Linear(5, count), experts=nn.ModuleList(nn.Linear(5, 5) for _ in range(count))
        )

    found = answer(experts(4).state_dict(), experts(3))
    assert (found.recipe, found.partial) == (None, None)


def test_of_a_width_that_is_not_explained_no_part_is_widened() -> None:
    def encoder(width: int) -> nn.Module:
        layer = nn.TransformerEncoderLayer(width, 2, 12, batch_first=True)
        return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(width, 3))

    assert answer(encoder(8).state_dict(), encoder(16)).partial is None


def test_what_the_checkpoint_lacks_is_never_made_up() -> None:
    assert suggested(ONet(4).state_dict(), Holder(model=ONet(4), extra=nn.Linear(2, 2))) is None


class Tied(nn.Module):
    def __init__(self, words: int = 20) -> None:
        super().__init__()
        self.wte = nn.Embedding(words, 4)
        self.lm_head = nn.Linear(4, words, bias=False)
        self.lm_head.weight = self.wte.weight


def test_a_name_of_a_tied_tensor_that_was_not_saved() -> None:
    old, new = Tied(), Tied()
    state_dict = OrderedDict(
        (f"module.{key}", value) for key, value in old.state_dict().items() if "wte" in key
    )
    recipe = suggested(state_dict, new)
    assert repr(recipe) == 'Recipe(strip_prefix("module."), tie(["wte.weight", "lm_head.weight"]))'
    new.load_state_dict(pasted(recipe).apply(state_dict, new.state_dict()), strict=True)
    assert torch.equal(new.lm_head.weight, old.wte.weight)


# -- right or absent: the old outputs as the oracle ----------------------------------------------------------


class OwnTransposed(nn.Module):
    """A transposed convolution that is none of torch's classes."""

    def __init__(self, inputs: int, outputs: int, size: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs, size, size))
        self.bias = nn.Parameter(torch.randn(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv_transpose2d(x, self.weight, self.bias)


class Gated(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, hidden), nn.Linear(6, hidden), nn.Linear(hidden, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.sigmoid(self.gate(x)) * self.up(x))


class Residual(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 6)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


def normed(norm: Callable[[int], nn.Module], hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, hidden), norm(hidden), nn.ReLU(), nn.Linear(hidden, 5))


def images(hidden: int, norm: Callable[[int], nn.Module] = nn.Identity) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, hidden, 3), norm(hidden), nn.ReLU(), nn.Conv2d(hidden, 5, 3))


def depthwise(norm: Callable[[int], nn.Module], hidden: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, hidden, 1), norm(hidden), nn.ReLU6()),
        *(nn.Conv2d(hidden, hidden, 3, groups=hidden), norm(hidden), nn.ReLU6()),
        nn.Conv2d(hidden, 6, 1),
    )


def upsampled(kind: Callable[..., nn.Module], outputs: int, **options: bool) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), kind(16, outputs, 2, **options))


def grouped(hidden: int = 4, groups: int = 2, outputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, hidden, 3), nn.ReLU(), nn.Conv2d(hidden, outputs, 3, groups=groups))


def kept(label: str, make: Callable[[int], nn.Module], old: int, new: int, recipe: str = "") -> object:
    return pytest.param(make(old), make(new), recipe, id=f"{label} {old} to {new}")


OUTPUTS = 'tile("2.weight", dim=1), tile("2.bias", dim=0)'
KEPT = [
    kept("blocks", Residual, 8, 12),
    kept("gate", Gated, 8, 12),
    *(
        kept(kind.__name__, partial(upsampled, kind), *sizes, OUTPUTS)
        for kind in (nn.ConvTranspose2d, OwnTransposed)
        for sizes in ((1, 3), (4, 8), (3, 16))
    ),
    kept("fewer", partial(upsampled, nn.ConvTranspose2d), 8, 4),
    kept("fewer of an unknown class", partial(upsampled, OwnTransposed), 3, 1),
    kept("without bias", partial(upsampled, nn.ConvTranspose2d, bias=False), 1, 3),
    kept("one layer", lambda outputs: nn.ConvTranspose2d(3, outputs, 2), 1, 3),
    *(
        kept("few channels", images, *sizes, 'widen("0", ["3"])')
        for sizes in ((2, 4), (3, 4), (4, 12), (8, 12))
    ),
    kept("batch norm", partial(images, norm=nn.BatchNorm2d), 8, 12),
    kept("depthwise with norms", partial(depthwise, nn.BatchNorm2d), 8, 12),
    kept("depthwise", partial(depthwise, nn.Identity), 8, 12),
    # norms of units that are copied equally often
    kept("LayerNorm", partial(normed, nn.LayerNorm), 8, 16),
    kept("RMSNorm", partial(normed, nn.RMSNorm), 8, 16),
    kept("BatchNorm1d", partial(normed, nn.BatchNorm1d), 8, 16),
    kept("PReLU", partial(normed, nn.PReLU), 8, 16),
]


@pytest.mark.parametrize(("old", "new", "recipe"), KEPT)
def test_old_outputs_are_kept(old: nn.Module, new: nn.Module, recipe: str) -> None:
    found = assert_loads(old, new)
    if recipe:
        assert repr(found) == f"Recipe({recipe})"
    assert_old_outputs_first(old, new)


def assert_old_outputs_first(old: nn.Module, new: nn.Module) -> None:
    flat = max(parameter.dim() for parameter in old.parameters()) == 2
    x = torch.randn((3, 6) if flat else (2, 3, 8, 8))
    before, after = old.eval()(x), new.eval()(x)
    both = min(before.shape[1], after.shape[1])
    torch.testing.assert_close(after[:, :both], before[:, :both])


class Twins(nn.Module):
    """Two branches side by side, and one layer that takes both in."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, hidden), nn.Linear(6, hidden)
        self.out = nn.Linear(2 * hidden, 5)


def autoencoder(width: int, hidden: int, bias: bool) -> nn.Module:
    return nn.ModuleDict({"enc": nn.Linear(width, hidden, bias), "dec": nn.Linear(hidden, width, bias)})


def taking(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, hidden, 3), nn.ReLU(), nn.ConvTranspose2d(hidden, 4, 2))


def giving(hidden: int) -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(3, hidden, 2), nn.ReLU(), nn.Conv2d(hidden, 5, 3))


def unknown(outputs: int) -> nn.Module:
    return nn.Sequential(OwnTransposed(16, outputs, 2, bias=False), nn.ReLU())


def refused(label: str, old: nn.Module, new: nn.Module) -> object:
    return pytest.param(old, new, id=label)


REFUSED = [
    refused("a layer of an unknown kind", unknown(1), unknown(3)),
    refused("a transposed convolution that takes more", taking(4), taking(8)),
    refused("many more", taking(16), taking(32)),
    refused("a transposed convolution that gives more", giving(4), giving(8)),
    refused("or less", giving(8), giving(4)),
    refused("one layer that takes more", nn.ConvTranspose2d(8, 4, 2), nn.ConvTranspose2d(16, 4, 2)),
    refused("one layer with groups", nn.Conv2d(8, 4, 2, groups=2), nn.Conv2d(8, 8, 2, groups=2)),
    refused("more inputs of groups", grouped(4), grouped(8)),
    refused("many more inputs of groups", grouped(16), grouped(32)),
    refused("fewer inputs of groups", grouped(8), grouped(4)),
    refused("more outputs of groups", grouped(outputs=4), grouped(outputs=8)),
    refused("fewer outputs of groups", grouped(outputs=8), grouped(outputs=4)),
    refused("fewer groups", grouped(8, 4), grouped(8, 2)),
    refused("no groups", grouped(8, 8, 8), grouped(8, 1, 8)),
    refused("groups", grouped(8, 1, 8), grouped(8, 8, 8)),
    refused("other groups of more", grouped(4, 2), grouped(8, 1)),
    refused("fewer hidden units", images(12), images(8)),
    refused("LayerNorm of some copies", normed(nn.LayerNorm, 8), normed(nn.LayerNorm, 12)),
    refused("RMSNorm of some copies", normed(nn.RMSNorm, 8), normed(nn.RMSNorm, 12)),
    refused("GroupNorm", *(normed(partial(nn.GroupNorm, 2), hidden) for hidden in (8, 16))),
    refused("GroupNorm of some copies", *(normed(partial(nn.GroupNorm, 4), hidden) for hidden in (8, 12))),
    refused("a norm over several dimensions", *(nn.Sequential(nn.LayerNorm((n, 6))) for n in (4, 6))),
    refused("two branches", Twins(4), Twins(6)),
    refused("heads of queries", blocks("q k v", shared=8), blocks("q k v", shared=4)),
    refused("heads of joined queries", blocks("qkv", shared=4), blocks("qkv", shared=8)),
    refused("sizes that changed places", autoencoder(4, 8, True), autoencoder(8, 4, True)),
    refused("or without bias", autoencoder(4, 8, False), autoencoder(8, 4, False)),
    refused(
        "a transposition that no bias tells",
        *(Holder(fc=nn.Linear(*sizes, bias=False)) for sizes in ((4, 8), (8, 4))),
    ),
    refused(
        "a square layer beside transposed ones",
        *(Holder(body=linear(8, 24), pooler=linear(24, 24)) for linear in (Conv1D, nn.Linear)),
    ),
]


@pytest.mark.parametrize(("old", "new"), REFUSED)
def test_what_may_mean_something_else_is_refused(old: nn.Module, new: nn.Module) -> None:
    assert_refused(old, new)


def assert_refused(old: nn.Module, new: nn.Module) -> None:
    assert suggested(old.state_dict(), new) is None


def test_more_channels_of_a_picture_are_not_hidden_units() -> None:
    assert repr(assert_loads(nn.Conv2d(3, 8, 3), nn.Conv2d(4, 8, 3))) == 'Recipe(repeat_channels("weight"))'


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("wrapped", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_outputs_under_a_weight_norm(wrapped: Callable[[nn.Module], nn.Module]) -> None:
    old, new = (nn.Sequential(wrapped(nn.Conv2d(3, n, 3))) for n in (4, 6))
    assert_loads(old, new)
    assert_old_outputs_first(old, new)
    for sizes in (((3, 4), (6, 4)), ((3, 3), (3, 6))):
        assert_refused(*(nn.Sequential(wrapped(nn.ConvTranspose2d(*each, 3))) for each in sizes))


@pytest.mark.filterwarnings("ignore:.*spectral_norm:FutureWarning")
@pytest.mark.parametrize("normed", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_rows_under_a_spectral_norm_are_not_copied(normed: Callable[[nn.Module], nn.Module]) -> None:
    assert_refused(*(nn.Sequential(normed(nn.Linear(6, n))) for n in (4, 8)))
    assert_refused(*(nn.Sequential(normed(nn.Linear(6, n))) for n in (8, 4)))


class Halves(nn.Module):
    """A gated layer that is one layer, cut in two."""

    def __init__(self, hidden: int, outputs: int = 5) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(6, 2 * hidden), nn.Linear(hidden, outputs)


@pytest.mark.parametrize("hidden", [10, 12, 16])
def test_a_gated_layer_that_is_one_is_not_tiled(hidden: int) -> None:
    found = answer(Halves(8).state_dict(), Halves(hidden))
    assert found.recipe is None
    assert found.partial is None
    assert repr(answer(Halves(8).state_dict(), Halves(8, 7)).recipe) == 'Recipe(tile("down.*", dim=0))'


def pyramid(strides: tuple[int, ...]) -> nn.Module:
    return Holder(heads=nn.ModuleDict({str(stride): nn.Conv2d(8, 4, 1) for stride in strides}))


def test_heads_that_are_named_by_their_stride_keep_it() -> None:
    assert_refused(pyramid((8, 16, 32)), pyramid((16, 32, 64)))
    assert_refused(pyramid((8, 16)), pyramid((32, 64)))
    old, new = pyramid((8, 16, 32)), pyramid((16, 32))
    assert repr(assert_loads(old, new)) == 'Recipe(drop("heads.8.*"))'
    assert torch.equal(new.heads["16"].weight, old.heads["16"].weight)


def test_a_layer_before_all_others_shifts_them() -> None:
    def net(*before: nn.Module) -> nn.Sequential:
        return nn.Sequential(*before, *(nn.Linear(6, 6) for _ in range(4)))

    old, new = net(), net(nn.Flatten())
    assert_loads(old, new)
    x = torch.randn(3, 6)
    torch.testing.assert_close(new(x), old(x))


def test_the_averaged_copy_beside_the_model_is_not_taken_for_it() -> None:
    old = Holder(model=ONet(4), ema_model=ONet(4))
    recipe = assert_loads(old, ONet(4))
    assert repr(recipe) == 'Recipe(strip_prefix("model."), drop("ema_model.*"))'


def test_a_checkpoint_that_fits_gets_no_suggestion() -> None:
    assert suggested(ONet(4).state_dict(), ONet(4)) is None


def test_nothing_is_suggested_that_was_not_seen_to_load() -> None:
    old = ONet(4).state_dict()
    asked: list[Recipe] = []
    assert suggest(old, ONet(14).state_dict(), lambda recipe: [str(asked.append(recipe))]).recipe is None
    assert [repr(recipe) for recipe in asked] == ['Recipe(tile("out2.*", dim=0))']


def test_a_change_of_shape_that_nothing_explains_has_no_suggestion() -> None:
    assert suggested(ONet(4).state_dict(), ONet(4, hidden=16)) is None


def test_what_has_no_shape_is_left_out_of_account() -> None:
    lazy = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)).state_dict()
    old = {"module.0.weight": torch.zeros(3, 5), "module.0.bias": torch.zeros(3), "module.extra": b"state"}
    old |= {"module.1.weight": torch.zeros(2, 3), "module.1.bias": torch.zeros(2)}
    recipe = suggest(old, lazy | {"extra": b""}, lambda recipe: []).recipe
    assert repr(recipe) == 'Recipe(strip_prefix("module."))'


def test_a_recipe_that_does_not_apply_is_not_given() -> None:
    def refuse(recipe: Recipe) -> list[str]:
        raise RecipeError("no")

    assert suggest(ONet(4).state_dict(), ONet(14).state_dict(), refuse).recipe is None


def test_keys_of_any_text_do_no_harm() -> None:
    old = {
        f"module.{key}": torch.zeros(2, place + 1)
        for place, key in enumerate(["a\nb", '"', "\\", "##[x]", "é", "*"])
    }
    new = {key.removeprefix("module."): value for key, value in old.items()}

    def differences(recipe: Recipe) -> set[str]:
        return recipe.apply(old, new).keys() ^ new.keys()

    recipe = suggest(old, new, differences).recipe
    assert recipe is not None
    assert pasted(recipe) == recipe


def test_two_thousand_keys_take_well_under_a_second() -> None:
    old = {
        f"module.layers.{i}.{name}": torch.empty(8, 8, device="meta")
        for i in range(250)
        for name in "abcdefgh"
    }
    new = {key.removeprefix("module.").replace("layers", "blocks"): value for key, value in old.items()}
    new["blocks.3.c"] = torch.empty(16, 8, device="meta")
    with within(1):
        recipe = suggest(old, new, lambda recipe: []).recipe
    assert recipe is not None
