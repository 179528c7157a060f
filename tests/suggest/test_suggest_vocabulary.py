from __future__ import annotations

import pytest
import torch
from suggesting import Tensors, answer, lived, loaded, suggested
from torch import nn

IDS = torch.randint(0, 12, (3, 7), generator=torch.Generator().manual_seed(0))


class Words(nn.Module):
    """An embedding and a head over the same words, under the names of some library."""

    def __init__(self, words: int, embed: str, head: str, bias: str = "", tied: bool = True) -> None:
        super().__init__()
        self.embed, self.head = embed, head
        self._put(embed, nn.Embedding(words, 8))
        self._put(head, nn.Linear(8, words, bias=bool(bias)))
        if tied:
            self.get_submodule(head).weight = self.get_submodule(embed).weight
        if bias:
            path, _, leaf = bias.rpartition(".")
            self._at(path).register_parameter(leaf, self.get_submodule(head).bias)

    def _at(self, path: str) -> nn.Module:
        module: nn.Module = self
        for name in filter(None, path.split(".")):
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module.get_submodule(name)
        return module

    def _put(self, path: str, module: nn.Module) -> None:
        before, _, name = path.rpartition(".")
        self._at(before).add_module(name, module)

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
