"""Find token ids that both models know, if a vocabulary grew or its words moved."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.tensors.nested import mapped
from pytest_ckptcompat.tensors.seeds import seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from .pairing import Pairing
    from .regions import Places, Rows
    from .wide_run import Batch

    Embedding = nn.Embedding | nn.EmbeddingBag


@dataclass(frozen=True)
class Ids:
    """How the ids of a batch are changed to ones that each model knows.

    Attributes:
        words: for each tensor of a batch, the words that both vocabularies have, by their numbers in the old
            and in the new one; None if the ids stay as they are.
        vocabularies: weight key -> shape, for each embedding of the old model.
        renumbered: the weight keys of embeddings whose words have moved.
    """

    words: tuple[Places | None, ...]
    vocabularies: Mapping[str, tuple[int, ...]]
    renumbered: tuple[str, ...]

    @classmethod
    def of(
        cls, before: nn.Module, model: nn.Module, rows: Rows, renamed: Mapping[str, str], batch: Batch
    ) -> Ids:
        """Find the ids that the embeddings of two models have in common.

        The old model is run once if a vocabulary was resized, to see which inputs are looked up in it.
        """
        old, new = _embeddings(before), _embeddings(model)
        sizes = {
            name: (old[name].num_embeddings, new[other].num_embeddings)
            for name, other in _pairs(old, new, renamed)
        }
        moved = {
            name: rows[sizes[name]]
            for name, other in _pairs(old, new, renamed)
            if sizes[name] in rows and _are_moved(old[name].weight, new[other].weight, *rows[sizes[name]])
        }
        resized = {name: min(each) for name, each in sizes.items() if each[0] != each[1]}
        count = len(_leaves(batch))
        words: list[Places | None] = [None] * count
        if moved:
            words = [next(iter(moved.values()))] * count
        elif resized:
            least = min(each.num_embeddings for each in old.values())
            readers = _readers(before, old, _changed(batch, [range(least)] * count))
            for place, names in enumerate(readers):
                bounds = [resized[name] for name in (names or resized) if name in resized]
                # There is no function to keep for ids that only one model knows.
                words[place] = (list(range(min(bounds))),) * 2 if bounds else None
        vocabularies = {f"{name}.weight": tuple(each.weight.shape) for name, each in old.items()}
        return cls(tuple(words), vocabularies, tuple(f"{name}.weight" for name in moved))

    @property
    def note(self) -> str:
        """What was left out or translated in the inputs, for the report."""
        if self.renumbered:
            return f", ids renumbered like {escape(self.renumbered[0], 60)}"
        bounds = [len(each[0]) for each in self.words if each is not None]
        return f", ids below {min(bounds)}" if bounds else ""

    def left_behind(self, state: Mapping[str, Any], pairing: Pairing) -> str:
        """Say what is wrong if only one of an embedding and its head was renumbered, or return ``""``.

        A head is recognised by a weight of the embedding's shape in the old state dict, and an output with as
        many entries.
        """
        for key, sizes in self.vocabularies.items():
            alike = [other for other, each in self.vocabularies.items() if each == sizes]
            heads = [
                head
                for head, weight in state.items()
                if head not in self.vocabularies and tuple(getattr(weight, "shape", ())) == sizes
            ]
            counted = [each for each in pairing.chosen.values() if sizes[0] in each.old_shape[1:]]
            if not heads or not counted or len({other in self.renumbered for other in alike}) > 1:
                continue  # or the head belongs to another embedding
            renumbered = key in self.renumbered
            if all(pairing.is_renumbered(each) == renumbered for each in counted):
                continue
            first, second = (key, heads[0]) if renumbered else (heads[0], key)
            return (
                f"{escape(first, 80)} was renumbered and {escape(second, 80)} was not: "
                "ids in the inputs and ids in the outputs mean different words"
            )
        return ""

    def pair(self, batch: Batch) -> tuple[Batch, Batch]:
        """Return the batch for the old model and for the new one."""
        old, new = ([each and each[side] for each in self.words] for side in (0, 1))
        return _changed(batch, old), _changed(batch, new)


def _embeddings(model: nn.Module) -> dict[str, Embedding]:
    kinds = (nn.Embedding, nn.EmbeddingBag)
    return {name: each for name, each in model.named_modules() if isinstance(each, kinds)}


def _pairs(
    old: Mapping[str, Embedding], new: Mapping[str, Embedding], renamed: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield the old and the new name of every embedding that both models have.

    Embeddings are matched by name or by the recipe's new name; if a loader renames them, by position.
    """
    now = {name: renamed.get(f"{name}.weight", f"{name}.weight").removesuffix(".weight") for name in old}
    others = [name for name in new if name not in now.values()]
    lost = [name for name in old if now[name] not in new]
    if len(lost) == len(others):
        now.update(zip(lost, others, strict=True))
    for name in old:
        if now[name] in new:
            yield name, now[name]


def _are_moved(old: torch.Tensor, new: torch.Tensor, kept: list[int], now: list[int]) -> bool:
    """Return whether these rows have moved: most rows with another place have equal values there."""
    places = [(was, here) for was, here in zip(kept, now, strict=True) if was != here]
    if not places or old.shape[1:] != new.shape[1:]:
        return False
    was, found = (
        old.detach().cpu()[[old for old, _ in places]],
        new.detach().cpu()[[new for _, new in places]],
    )
    return bool((was.to(found.dtype) == found).all(1).double().mean() > 0.5)


def _readers(before: nn.Module, embeddings: Mapping[str, Embedding], batch: Batch) -> list[set[str]]:
    """Return, for each tensor of a batch, the embeddings that receive it unchanged."""
    leaves = _leaves(batch)
    places = {leaf.data_ptr(): place for place, leaf in enumerate(leaves)}
    readers: list[set[str]] = [set() for _ in leaves]

    def hears(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hear(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args and (place := places.get(args[0].data_ptr())) is not None:
                readers[place].add(name)

        return hear

    with ExitStack() as hooks, seeded(0), torch.no_grad():
        for name, each in embeddings.items():
            hooks.enter_context(each.register_forward_pre_hook(hears(name)))
        before.eval()
        with suppress(Exception):  # some integers are not ids; keep what was heard before the error
            before(*batch[0], **batch[1])
    return readers


def _leaves(batch: Batch) -> list[torch.Tensor]:
    """Return the tensors of a batch, in the order of `mapped`."""
    leaves: list[torch.Tensor] = []
    mapped(batch, lambda tensor: leaves.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return leaves


def _changed(batch: Batch, words: Sequence[Sequence[int] | None]) -> Batch:
    """Return a batch in which the ids of each tensor are numbers of words in a list, modulo its length."""
    following = iter(words)

    def change(ids: torch.Tensor) -> torch.Tensor:
        known = next(following, None)
        if known is None or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            return ids
        if max(known) > torch.iinfo(ids.dtype).max:  # a mask of bytes, say, beside a large vocabulary
            return ids
        table = torch.tensor(known, dtype=ids.dtype, device=ids.device)
        return torch.where(ids >= 0, table[ids.long() % len(known)], ids)

    args, kwargs = mapped(batch, change)
    return args, kwargs
