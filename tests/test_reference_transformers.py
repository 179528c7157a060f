"""New words against those of transformers' ``resize_token_embeddings``, where transformers is installed."""

from __future__ import annotations

import pytest
import torch

from pytest_ckptcompat import Recipe
from pytest_ckptcompat.operators import append

transformers = pytest.importorskip("transformers")

OLD, ADDED, WIDTH = 60, 20_000, 6


def embedding(rank: int = WIDTH) -> torch.Tensor:
    """Trained rows: off zero, of unequal and correlated columns; of less than full rank if one is given."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(rank, WIDTH, generator=generator) * torch.arange(1, WIDTH + 1)
    return torch.randn(OLD, rank, generator=generator) @ mixing + torch.arange(WIDTH)


def theirs(old: torch.Tensor) -> torch.Tensor:
    """The new rows of a tiny model of theirs."""
    config = transformers.GPT2Config(vocab_size=OLD, n_embd=WIDTH, n_layer=1, n_head=1, n_positions=4)
    model = transformers.GPT2LMHeadModel(config)
    torch.manual_seed(0)
    with torch.no_grad():
        model.transformer.wte.weight.copy_(old)
        model.resize_token_embeddings(OLD + ADDED, mean_resizing=True)
    rows: torch.Tensor = model.transformer.wte.weight.detach()
    assert torch.equal(rows[:OLD], old)
    return rows[OLD:]


def ours(old: torch.Tensor) -> torch.Tensor:
    target = {"wte.weight": torch.empty(OLD + ADDED, WIDTH, device="meta")}
    recipe = Recipe(append("wte.weight", dim=0, init="multivariate_normal"))
    rows: torch.Tensor = recipe.apply({"wte.weight": old}, target)["wte.weight"]
    assert torch.equal(rows[:OLD], old)
    return rows[OLD:]


def test_new_words_have_the_mean_and_the_covariance_of_theirs() -> None:
    # In float64, since the deviations, 3e-5 of the old rows', are near the last bits of float32.
    old = embedding().double()
    new, other = ours(old), theirs(old.float()).double()
    expected = 1e-9 * torch.cov(old.T, correction=0)
    spread = expected.diagonal().sqrt()
    error = 5 / ADDED**0.5  # of a mean in its deviation, and about that of a correlation; five sigma

    assert ((new.mean(0) - old.mean(0)).abs() < error * spread).all()
    assert ((other.mean(0) - old.mean(0)).abs() < error * spread + 1e-6 * old.abs().max()).all()
    scale = spread[:, None] * spread
    correlations = torch.cov(new.T) / scale
    torch.testing.assert_close(correlations, expected / scale, rtol=0, atol=1.5 * error)
    torch.testing.assert_close(correlations, torch.cov(other.T) / scale, rtol=0, atol=3 * error + 0.02)


def test_where_there_is_no_covariance_to_draw_from_new_words_are_near_the_mean_as_theirs_are() -> None:
    old = embedding(rank=2)
    new, other = ours(old), theirs(old)
    nearness = 1e-3 * float(old.std())
    torch.testing.assert_close(new, old.mean(0).expand_as(new), rtol=0, atol=nearness)
    torch.testing.assert_close(other, old.mean(0).expand_as(other), rtol=0, atol=nearness)


def test_a_tied_head_gets_the_same_new_words() -> None:
    old = embedding()
    target = {key: torch.empty(OLD + 3, WIDTH, device="meta") for key in ("wte.weight", "lm_head.weight")}
    state = {"wte.weight": old, "lm_head.weight": old}
    new = Recipe(append("wte.weight", dim=0, init="mean")).apply(state, target)
    assert new["wte.weight"] is new["lm_head.weight"]
