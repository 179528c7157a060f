"""Recipes against what transformers does for the same purpose, on small models, where transformers is installed."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pytest_ckptcompat import open_checkpoint
from pytest_ckptcompat.checks.apply import apply
from pytest_ckptcompat.recipes.operators.append import append
from pytest_ckptcompat.recipes.operators.axes import transpose
from pytest_ckptcompat.recipes.operators.blocks import insert_block
from pytest_ckptcompat.recipes.operators.channels import reduce
from pytest_ckptcompat.recipes.operators.fusing import concat, split
from pytest_ckptcompat.recipes.operators.tie import tie
from pytest_ckptcompat.recipes.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

transformers = pytest.importorskip("transformers")


def llama(**changes: Any) -> Any:
    config = {
        "vocab_size": 37, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 32,
    }  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(config | changes)))
    return model.double().eval()


def tokens(vocabulary: int = 37) -> torch.Tensor:
    return torch.randint(vocabulary, (2, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).logits


@pytest.mark.parametrize("tied", [True, False])
def test_new_words_are_where_resize_token_embeddings_puts_them(tied: bool) -> None:
    """It draws around the mean as well, with 1e-9 of the covariance: near the mean both are the same."""
    old = llama(tie_word_embeddings=tied)
    theirs = copy.deepcopy(old)
    theirs.resize_token_embeddings(45, mean_resizing=True)
    ours = llama(tie_word_embeddings=tied, vocab_size=45)
    names = ["model.embed_tokens.weight", "lm_head.weight"]
    recipe = Recipe(*(append(name, dim=0, init="multivariate_normal") for name in names))
    ours.load_state_dict(recipe.apply(old.state_dict(), ours.state_dict()))
    for name in names:
        one, other = ours.state_dict()[name], theirs.state_dict()[name]
        assert torch.equal(one[:37], other[:37])
        scale = float(one[:37].std())
        torch.testing.assert_close(one[37:], other[37:], rtol=0, atol=1e-3 * scale)
        assert float(one[37:].std(0).max()) < 1e-3 * scale
    torch.testing.assert_close(logits(ours, tokens()), logits(theirs, tokens()), rtol=0, atol=1e-3)
    torch.testing.assert_close(logits(ours, tokens())[..., :37], logits(old, tokens()), rtol=0, atol=1e-9)


def test_new_words_spread_as_those_of_resize_token_embeddings_do() -> None:
    """Both draw; of many words, the covariances agree, which no other scale or shape would have."""
    name = "model.embed_tokens.weight"
    old = llama(vocab_size=300, tie_word_embeddings=True)
    with torch.no_grad():
        old.get_input_embeddings().weight[:, 0] += 3 * old.get_input_embeddings().weight[:, 1]
    theirs = copy.deepcopy(old)
    torch.manual_seed(1)
    theirs.resize_token_embeddings(20_300, mean_resizing=True)
    ours = append(name, dim=0, n=20_000, init="multivariate_normal").apply(old.state_dict(), {})
    one, other = (torch.cov(state[name][300:].T) for state in (ours, theirs.state_dict()))
    assert float(other.diagonal().min()) > 0  # it really drew
    torch.testing.assert_close(one, other, rtol=0.1, atol=0.03 * float(other.max()))


def test_grouped_queries_of_equal_heads_keep_the_function() -> None:
    """Heads are told apart as the model's own attention tells them: consecutive ones share."""
    few = llama(num_key_value_heads=2)
    many = llama()
    state = few.state_dict()
    for key, value in state.items():
        if ".k_proj." in key or ".v_proj." in key:
            state[key] = value.unflatten(0, (2, 1, 4)).expand(2, 2, 4, -1).flatten(0, 2)
    many.load_state_dict(state)
    recipe = Recipe(reduce("*.[kv]_proj.weight", dim=0, groups=2))
    again = llama(num_key_value_heads=2)
    again.load_state_dict(recipe.apply(many.state_dict(), again.state_dict()))
    torch.testing.assert_close(logits(again, tokens()), logits(many, tokens()), rtol=0, atol=1e-9)


def test_llama_pro_keeps_the_function() -> None:
    old, new = llama(), llama(num_hidden_layers=4)
    outputs = ["self_attn.o_proj.weight", "mlp.down_proj.weight"]
    growth = Recipe(insert_block("model.layers.2", at=3, zero=outputs)).run(
        old.state_dict(), new.state_dict()
    )
    new.load_state_dict(growth.state_dict)
    assert not growth.changes_function
    torch.testing.assert_close(logits(new, tokens()), logits(old, tokens()), rtol=0, atol=1e-9)


def test_queries_keys_and_values_of_llama_are_those_of_phi3() -> None:
    """Phi-3 is Llama with both projections fused: the same numbers come out."""
    old = llama(num_key_value_heads=2)
    config = transformers.Phi3Config(
        **{name: getattr(old.config, name) for name in (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "max_position_embeddings", "rms_norm_eps",
        )},
        pad_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    new = transformers.Phi3ForCausalLM(config).double().eval()
    q, k, v = ("*.q_proj.weight", "*.k_proj.weight", "*.v_proj.weight")
    recipe = Recipe(
        concat([q, k, v], "*.qkv_proj.weight", dim=0),
        concat(["*.gate_proj.weight", "*.up_proj.weight"], "*.gate_up_proj.weight", dim=0),
    )
    new.load_state_dict(recipe.apply(old.state_dict(), new.state_dict()))
    torch.testing.assert_close(logits(new, tokens()), logits(old, tokens()), rtol=0, atol=1e-9)
    back = Recipe(
        split("*.qkv_proj.weight", [q, k, v], dim=0),
        split("*.gate_up_proj.weight", ["*.gate_proj.weight", "*.up_proj.weight"], dim=0),
    ).apply(new.state_dict(), old.state_dict())
    assert all(torch.equal(back[key], value) for key, value in old.state_dict().items())


def test_conv1d_of_gpt2_is_a_linear_transposed() -> None:
    torch.manual_seed(0)
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=37)
    )
    linear = copy.deepcopy(gpt2)
    conv1d = [name for name, module in linear.named_modules() if type(module).__name__ == "Conv1D"]
    for name in conv1d:
        weight = linear.get_submodule(name).weight
        linear.set_submodule(name, torch.nn.Linear(*weight.shape))
    linear.load_state_dict(Recipe(transpose("*.h.*.weight")).apply(gpt2.state_dict(), linear.state_dict()))
    gpt2, linear = gpt2.double().eval(), linear.double().eval()
    torch.testing.assert_close(logits(linear, tokens()), logits(gpt2, tokens()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shards", ["1GB", "8KB"])
def test_from_pretrained_loads_what_apply_writes(tmp_path: Path, shards: str) -> None:
    """From a file of theirs, sharded or not, to a file of theirs: words and a block more, the same logits."""
    old = llama(tie_word_embeddings=True)
    old.save_pretrained(tmp_path / "old", max_shard_size=shards)
    (single,) = list((tmp_path / "old").glob("model.safetensors")) or [tmp_path / "old"]
    new = llama(tie_word_embeddings=True, vocab_size=40, num_hidden_layers=4)
    recipe = Recipe(
        append("model.embed_tokens.weight", dim=0, init="mean"),
        insert_block("model.layers.2", at=3, zero=["self_attn.o_proj.*", "mlp.down_proj.*"]),
        tie(["model.embed_tokens.weight", "lm_head.weight"]),  # of tied tensors their files hold one
    )
    new.config.save_pretrained(tmp_path / "new")
    apply(open_checkpoint(single), new, recipe, tmp_path / "new" / "model.safetensors")
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "new", dtype=torch.float64).eval()
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    torch.testing.assert_close(logits(loaded, tokens())[..., :37], logits(old, tokens()), rtol=0, atol=1e-9)
