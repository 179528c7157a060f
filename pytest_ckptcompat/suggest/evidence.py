"""Weigh the evidence for different ways to rename keys."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_ckptcompat.recipes.per_tensor import Shape

    from .templates import Families, Indices, Shapes, Substitution

    Neighbours = Mapping[str, list[str]]

# Names for the same thing in other frameworks or older versions.
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

WRAPPERS = {
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    *("model", "net", "network"),
}
"""Names that only ever wrap a whole model."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def likeness(one: str, other: str, ignored: frozenset[str] = frozenset()) -> float:
    """Rate two names, or paths, from 0 (nothing in common) to 1 (the same, or known synonyms).

    Words in `ignored` don't count, such as ``proj`` if all names have it.
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
    """Split ``selfAttn.q_proj`` into ``self, attn, q, proj``."""
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


CLEAR = 0.15
"""How much likelier by name a substitution must be than another that explains as much."""


@dataclass(slots=True)
class Evidence:
    """The effects of a substitution.

    Attributes:
        substitution: the replacement in names.
        names: key -> new name, for keys that would become keys of the model.
        exact: how many of them also have the model's shape.
        lost: how many keys would get a name that the model lacks.
        misplaced: whether a layer with another number would not fit where another place fits it.
        unfilled: whether the model has more keys under the new name than the checkpoint under the old one.
        like: the likeness of the old and the new parts, 0 to 1.
        distinct: the same, without words that the alternatives share.
    """

    substitution: Substitution
    names: dict[str, str] = field(default_factory=dict)
    exact: int = 0
    lost: int = 0
    misplaced: bool = False
    unfilled: bool = False
    like: float = 0.0
    distinct: float = 0.0

    @property
    def wraps(self) -> bool:
        """Whether it adds or removes a name that only ever wraps a whole model.

        Lost keys then don't count against it: they may also have been renamed or removed.
        """
        parts = self.substitution.old + self.substitution.new
        one_sided = not (self.substitution.old and self.substitution.new)
        return self.substitution.prefix == () and one_sided and WRAPPERS.issuperset(parts)

    @property
    def explains(self) -> int:
        """How many keys it explains; those whose shape also fits count twice."""
        return len(self.names) + self.exact

    @property
    def worth(self) -> int:
        """The number of explained keys minus the number of lost keys."""
        return self.explains - (0 if self.wraps else self.lost)

    @property
    def rank(self) -> tuple[bool, int, float, bool, int]:
        """The sort key: wrappers first, then what explains most, then what is likelier and simpler."""
        substitution = self.substitution
        parts = len(substitution.old) + len(substitution.new)
        return self.wraps, self.worth, self.like, substitution.prefix is not None, -parts

    def convinces(self, old: Neighbours, new: Neighbours, reshaped: bool) -> bool:
        """Return whether the evidence is more than a shape that happens to be the same."""
        if self.worth <= 0 or self.misplaced or not (self.exact or reshaped):
            return False
        if self.exact >= 3 or self.like >= 0.3:
            return True
        whole = self.exact == 2 and not self.lost and not self.unfilled
        return whole and all(old[key] == new[name] for key, name in self.names.items())

    def rivalled(self, others: Iterable[Evidence]) -> bool:
        """Return whether a contradicting one explains about as much and has a similar name likeness."""
        return any(
            other.explains >= 0.9 * self.explains
            and other.distinct > self.distinct - CLEAR
            and _contradict(self.names, other.names)
            for other in others
            if other is not self
        )


def gathered(
    substitution: Substitution, old: Families, new: Families, current: Shapes, model: Shapes
) -> Evidence:
    """Collect the evidence for a substitution from keys and places that are still unmatched."""
    evidence = Evidence(substitution, like=_likeness(substitution))
    numbered = "#" in "".join(substitution.old)
    for parts, family in old.items():
        changed = substitution(parts)
        if changed is None or changed == parts:
            continue
        places: Mapping[Indices, str] = new.get(changed, {})
        if numbered:
            places = _counterparts(family, places, current, model)
        for numbers, key in family.items():
            if numbers not in places:
                evidence.lost += 1
                continue
            evidence.names[key] = places[numbers]
            evidence.exact += current[key] == model[places[numbers]]
    start = (*(substitution.prefix or ()), *substitution.new)
    filled = set(evidence.names.values())
    if numbered and evidence.exact < len(evidence.names):
        evidence.misplaced = _misplaced(evidence.names, new, current, model)
    evidence.unfilled = any(
        parts[: len(start)] == start and not filled.issuperset(family.values())
        for parts, family in new.items()
    )
    return evidence


def _counterparts(
    family: Mapping[Indices, str], places: Mapping[Indices, str], current: Shapes, model: Shapes
) -> Mapping[Indices, str]:
    """For the numbers of layers, their places: under the same numbers, or in order where all have others.

    ``conv1`` to ``conv3`` may be ``blocks.0`` to ``blocks.2``, if their shapes agree.
    """
    if len(family) != len(places) or family.keys() == places.keys():
        return places
    ordered = dict(zip(in_order(family), (places[numbers] for numbers in in_order(places)), strict=True))
    return ordered if all(current[family[each]] == model[place] for each, place in ordered.items()) else {}


def _misplaced(names: Mapping[str, str], new: Families, current: Shapes, model: Shapes) -> bool:
    def sort(key: str, shapes: Shapes) -> tuple[str, Shape]:
        return key.rpartition(".")[2], shapes[key]

    exact = {name for key, name in names.items() if current[key] == model[name]}
    places = {place for family in new.values() for place in family.values()}
    free = {sort(place, model) for place in places - exact}
    return any(name not in exact and sort(key, current) in free for key, name in names.items())


def in_order(numbers: Iterable[Indices]) -> list[Indices]:
    """Numbers as they are counted."""
    return sorted(numbers, key=lambda each: tuple(map(int, each)))


def distinguish(evidence: Iterable[Evidence]) -> None:
    """Set `distinct` to the likeness without words that the alternatives share."""
    news: dict[tuple[object, ...], list[str]] = {}
    olds: dict[tuple[object, ...], list[str]] = {}
    for each in evidence:
        prefix, old, new = each.substitution.prefix, each.substitution.old, each.substitution.new
        news.setdefault((prefix, old), []).append(".".join(new))
        olds.setdefault((prefix, new), []).append(".".join(old))
    for each in evidence:
        prefix, old, new = each.substitution.prefix, each.substitution.old, each.substitution.new
        common = _common(news[prefix, old]) | _common(olds[prefix, new])
        each.distinct = likeness(".".join(old), ".".join(new), common) if old and new else each.like


def _common(names: Sequence[str]) -> frozenset[str]:
    """Return the words that several names share."""
    if len(names) < 2:
        return frozenset()
    return frozenset.intersection(*(frozenset(words_of(name)) for name in names))


def _likeness(substitution: Substitution) -> float:
    if substitution.old and substitution.new:
        return likeness(".".join(substitution.old), ".".join(substitution.new))
    return 0.9 if WRAPPERS.issuperset(substitution.old + substitution.new) else 0.5


def neighbours(keys: Shapes, shared: Shapes) -> dict[str, list[str]]:
    """Return key -> the nearest shared keys before and after it."""
    found: dict[str, list[str]] = {key: [] for key in keys}
    for order in (keys, reversed(list(keys))):
        last = ""
        for key in order:
            found[key].append(last)
            if key in shared:
                last = key
    return found


def _contradict(names: dict[str, str], others: dict[str, str]) -> bool:
    """Return whether a key gets two names, or a name two keys."""
    both = names | others
    return both != others | names or len(set(both.values())) < len(both)
