from __future__ import annotations

import pytest
import torch
from suggesting import Tensors, answer, lived, loaded, put, suggested
from torch import nn
from torch.nn import functional

from pytest_ckptcompat import resample
from pytest_ckptcompat.suggest.changes import Changes
from pytest_ckptcompat.suggest.reshaping import reshapes
from pytest_ckptcompat.suggest.tables import is_position


def grown(key, old, new):
    state = Tensors({key: old}).state_dict()
    recipe = suggested(state, Tensors({key: new}))
    return state[key], None if recipe is None else recipe.apply(state, Tensors({key: new}).state_dict())[key]


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("positional_embedding", (16, 32), (24, 32)),
        ("transformer.wpe.weight", (16, 8), (24, 8)),
        ("embeddings.position_embeddings.weight", (16, 8), (24, 8)),
        ("pos_embed", (1, 15, 8), (1, 23, 8)),
        ("blocks.0.attn.rel_pos_h", (13, 8), (27, 8)),
    ],
)
def test_places_on_a_line_are_interpolated_along_it(key, old, new):
    table, became = grown(key, old, new)
    assert became is not None
    lines = table.reshape(1, -1, old[-1]).mT
    expected = functional.interpolate(lines, new[-2], mode="linear").mT.reshape(new)
    torch.testing.assert_close(became, expected)


def test_the_first_places_of_a_text_are_kept_where_it_got_shorter():
    table, became = grown("wpe.weight", (24, 8), (16, 8))
    assert torch.equal(became, table[:16])


@pytest.mark.parametrize("last", [True, False])
def test_a_picture_of_positions_is_interpolated(last):
    sizes = [(1, side, side, 6) if last else (1, 6, side, side) for side in (4, 8)]
    table, became = grown("pos_embed", *sizes)
    picture = table.permute(0, 3, 1, 2) if last else table
    expected = functional.interpolate(picture, (8, 8), mode="bicubic", antialias=True)
    torch.testing.assert_close(became, expected.permute(0, 2, 3, 1) if last else expected)


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("pos_embed", (1, 4, 4, 6), (1, 8, 4, 6)),
        ("relative_attention_bias.weight", (32, 8), (48, 8)),
        ("attn.relative_position_index", (49, 49), (144, 144)),
        ("encoder.pe", (50, 1, 8), (80, 1, 8)),
        ("pos_embed", (15, 1, 8), (23, 1, 8)),
        ("relative_position_bias_table", (172, 4), (732, 4)),
        ("pos_embed", (1, 16, 8), (1, 16, 12)),
    ],
)
def test_tables_of_unknown_order_are_left_alone(key, old, new):
    assert grown(key, old, new)[1] is None


def test_places_of_a_picture_that_are_no_square_are_left_alone():
    shapes = {"patch.weight": (8, 3, 4, 4), "pos_embed": (1, 15, 8)}
    state = Tensors(shapes).state_dict()
    assert suggested(state, Tensors({**shapes, "pos_embed": (1, 23, 8)})) is None


def test_a_text_beside_pictures_is_a_line():
    shapes = {
        "positional_embedding": (16, 8),
        "visual.conv1.weight": (8, 3, 4, 4),
        "visual.positional_embedding": (17, 8),
    }
    new = {**shapes, "positional_embedding": (25, 8), "visual.positional_embedding": (26, 8)}
    text, picture = reshapes(Changes(shapes, new))
    assert text == resample("positional_embedding", size=(25, 1), mode="bilinear", old_size=(16, 1))
    assert picture == resample("visual.positional_embedding", size=(5, 5), prefix_tokens=1)


@pytest.mark.parametrize(
    ("key", "old", "new", "grid"),
    [
        ("pos_embed", (1, 197, 64), (1, 577, 64), {"size": (24, 24), "prefix_tokens": 1}),
        ("pos_embed", (1, 198, 64), (1, 578, 64), {"size": (24, 24), "prefix_tokens": 2}),
        ("embeddings.position_embedding.weight", (50, 64), (197, 64), {"size": (14, 14), "prefix_tokens": 1}),
        ("blocks.0.attn.relative_position_bias_table", (169, 4), (729, 4), {"size": (27, 27)}),
        ("pos_embed", (1, 577, 64), (1, 197, 64), {"size": (14, 14), "prefix_tokens": 1}),
        ("wpe.weight", (1024, 8), (4096, 8), {"size": (4096, 1), "mode": "bilinear", "old_size": (1024, 1)}),
    ],
)
def test_positions_of_another_grid_or_of_a_longer_text(key, old, new, grid):
    assert reshapes(Changes({key: old}, {key: new})) == [resample(key, **grid)]


def test_positions_beside_a_convolution_are_a_grid():
    old = {"patch.weight": (8, 3, 16, 16), "pos_embed": (1, 196, 8)}
    assert reshapes(Changes(old, {**old, "pos_embed": (1, 576, 8)})) == [resample("pos_embed", size=(24, 24))]


# -- tokens in front of the places --------------------------------------------------------------------------


def vit(tokens, side=4):
    shapes = {"patch.weight": (8, 3, 4, 4)}
    shapes |= {name: (1, count, 8) for name, count in tokens.items()}
    return Tensors({**shapes, "pos_embed": (1, sum(tokens.values()) + side**2, 8)})


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        ({"cls_token": 1, "dist_token": 1}, {"cls_token": 1}, [0, *range(2, 18)]),
        ({"cls_token": 1, "dist_token": 1}, {}, [*range(2, 18)]),
        ({"cls_token": 1}, {}, [*range(1, 17)]),
        ({"reg_token": 4, "cls_token": 1}, {"cls_token": 1}, [0, *range(5, 21)]),
    ],
)
def test_a_token_that_is_gone_takes_its_own_place_along(old, new, kept):
    state = vit(old).state_dict()
    recipe = suggested(state, vit(new))
    assert recipe is not None
    assert torch.equal(recipe.apply(state, vit(new).state_dict())["pos_embed"], state["pos_embed"][:, kept])


def test_a_token_that_is_gone_and_another_grid():
    state = vit({"cls_token": 1, "dist_token": 1}).state_dict()
    recipe = suggested(state, vit({"cls_token": 1}, side=8))
    assert recipe is not None
    became = recipe.apply(state, vit({"cls_token": 1}, side=8).state_dict())["pos_embed"]
    assert became.shape == (1, 65, 8)
    assert torch.equal(became[:, 0], state["pos_embed"][:, 0])


def test_a_place_that_is_gone_without_a_token_is_not_guessed():
    found = answer(
        vit({"cls_token": 2}).state_dict(),
        Tensors({"patch.weight": (8, 3, 4, 4), "cls_token": (1, 2, 8), "pos_embed": (1, 17, 8)}),
    )
    assert found.recipe is None


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("pos_embed", True),
        ("layers.0.attn.rel_pos_w", True),
        ("transformer.wpe.weight", True),
        ("embeddings.position_ids", True),
        ("composer.weight", False),
        ("postnet.0.weight", False),
        ("type.weight", False),
    ],
)
def test_names_of_positions(key, expected):
    assert is_position(key) is expected


def test_a_layer_called_after_positions_is_a_layer():
    def net(outputs):
        return nn.ModuleDict({"pos_proj": nn.Linear(4, outputs)})

    assert repr(suggested(net(3).state_dict(), net(5))) == 'Recipe(tile("pos_proj.*", dim=0))'


IDS = torch.randint(0, 12, (3, 7), generator=torch.Generator().manual_seed(0))


class Words(nn.Module):
    """An embedding and a head over the same words, under the names of some library."""

    def __init__(self, words: int, embed: str, head: str, bias: str = "", tied: bool = True) -> None:
        super().__init__()
        self.embed, self.head = embed, head
        put(self, embed, nn.Embedding(words, 8))
        put(self, head, nn.Linear(8, words, bias=bool(bias)))
        if tied:
            self.get_submodule(head).weight = self.get_submodule(embed).weight
        if bias:
            put(self, bias, self.get_submodule(head).bias)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(self.head)(torch.tanh(self.get_submodule(self.embed)(ids)))


NAMES = {
    "bert": ("bert.embeddings.word_embeddings", "cls.predictions.decoder", "cls.predictions.bias"),
    "roberta": ("roberta.embeddings.word_embeddings", "lm_head.decoder", "lm_head.bias"),
    "gpt2": ("transformer.wte", "lm_head"),
    "llama": ("model.embed_tokens", "lm_head"),
    "odd": ("tokens", "generator"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tied", [True, False])
def test_all_that_counts_the_words_grows_with_them(name, tied):
    old = lived(Words(12, *NAMES[name], tied=tied))
    new = Words(15, *NAMES[name], tied=tied)
    recipe = suggested(old.state_dict(), new)
    assert recipe is not None
    loaded(new, old.state_dict(), recipe)
    torch.testing.assert_close(new(IDS)[..., :12], old(IDS))
    head = new.get_submodule(NAMES[name][1]).weight
    torch.testing.assert_close(head[12:], head[:12].mean(0).expand(3, -1))


def test_a_tied_vocabulary_saved_apart_gets_the_same_rows_everywhere():
    old = Words(12, *NAMES["bert"])
    state = {key: value.clone() for key, value in old.state_dict().items()}
    new = Words(15, *NAMES["bert"])
    recipe = suggested(state, new)
    assert recipe is not None
    became = recipe.apply(state, new.state_dict())
    weights = [value for key, value in became.items() if key.endswith("weight")]
    assert len(weights) == 2
    assert torch.equal(*weights)


def test_a_bias_over_the_logits_of_two_dimensions():
    shapes = {"shared.weight": (12, 8), "final_logits_bias": (1, 12)}
    recipe = suggested(
        Tensors(shapes).state_dict(), Tensors({"shared.weight": (15, 8), "final_logits_bias": (1, 15)})
    )
    assert recipe is None  # no embedding, for all that is known
    shapes = {"shared_emb.weight": (12, 8), "final_logits_bias": (1, 12)}
    state = Tensors(shapes).state_dict()
    new = Tensors({"shared_emb.weight": (15, 8), "final_logits_bias": (1, 15)})
    recipe = suggested(state, new)
    assert recipe is not None
    bias = recipe.apply(state, new.state_dict())["final_logits_bias"]
    assert torch.equal(bias[:, :12], state["final_logits_bias"])


def test_fewer_words_are_the_first_ones():
    old, new = Words(12, *NAMES["gpt2"]), Words(10, *NAMES["gpt2"])
    recipe = suggested(old.state_dict(), new)
    assert recipe is not None
    assert torch.equal(
        recipe.apply(old.state_dict(), new.state_dict())["lm_head.weight"],
        old.get_submodule("lm_head").weight[:10],
    )


def test_a_layer_that_takes_as_many_in_is_no_head():
    """A one-hot input of the words' size: which rows go together, shapes do not tell."""

    def net(words):
        return nn.ModuleDict(
            {"embed": nn.Embedding(words, 8), "out": nn.Linear(8, words), "again": nn.Linear(words, 3)}
        )

    found = answer(net(12).state_dict(), net(15))
    for recipe in filter(None, (found.recipe, found.partial)):
        assert 'append("out' not in repr(recipe)
