"""How much two names look like each other's successors."""

from __future__ import annotations

import difflib
import re
from functools import lru_cache

# Names that other frameworks, or older versions of this one, have for the same thing.
_SYNONYMS = (
    {"weight", "gamma", "kernel", "scale", "g", "w"},
    {"bias", "beta", "offset", "b"},
    {"running_mean", "moving_mean", "mean"},
    {"running_var", "moving_variance", "moving_var", "variance", "var"},
    {"query", "q"},
    {"key", "k"},
    {"value", "v"},
    {"out", "o", "output"},
    {"norm", "ln", "layernorm", "bn", "batchnorm"},
    {"fc", "linear", "dense", "lin", "proj", "projection"},
    {"attn", "attention", "att"},
    {"ffn", "mlp", "feedforward"},
    {"embed", "embedding", "embeddings", "emb"},
    {"conv", "convolution"},
    {"block", "blocks", "layer", "layers", "stage", "stages"},
    {"head", "classifier", "fc"},
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def likeness(one: str, other: str, ignored: frozenset[str] = frozenset()) -> float:
    """From 0 (nothing in common) to 1 (the same, or known names for the same).

    Args:
        one: a name, or several with dots between.
        other: another.
        ignored: words that say nothing, such as ``proj`` where it is in all the names there are.
    """
    if words_of(one) == words_of(other) or _synonymous(one, other):
        return 1.0
    words, others = ([word for word in words_of(name) if word not in ignored] for name in (one, other))
    if not words or not others:
        return 0.0
    few, many = sorted((words, others), key=len)
    shared = sum(max(_word_likeness(word, each) for each in many) for word in few)
    return 2 * shared / (len(few) + len(many))


@lru_cache(maxsize=10_000)
def words_of(name: str) -> tuple[str, ...]:
    """``selfAttn.q_proj`` as ``self, attn, q, proj``."""
    return tuple(word.lower() for word in _WORD.findall(name))


@lru_cache(maxsize=10_000)
def _word_likeness(one: str, other: str) -> float:
    if one == other:
        return 1.0
    if _synonymous(one, other):
        return 0.9
    if one.startswith(other) or other.startswith(one):
        return 0.8
    ratio = difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()
    return 0.7 * ratio if ratio >= 0.6 else 0.0


def _synonymous(one: str, other: str) -> bool:
    return any(one in names and other in names for names in _SYNONYMS)
