"""More hidden units, and the same function."""

# ruff: noqa: D102, N801  # named as recipes spell them; a method is documented where it is first

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

import torch

from pytest_ckptcompat.errors import RecipeError
from pytest_ckptcompat.keys import escape, nearest
from pytest_ckptcompat.proof.difference import same_bits
from pytest_ckptcompat.reading.stored import materialise
from pytest_ckptcompat.rules import finding
from pytest_ckptcompat.tensors import shown

from .arguments import python
from .globs import alike, filled, stars
from .growing import bits, differing, drawn, generator, promise
from .keywise import shape
from .operator import Operator
from .plan import Plan, State, Write, memory
from .units import Split, Units, shares

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pytest_ckptcompat.rules import Finding, Promise

    Modules = Mapping[str, Sequence[str]]


@dataclass(frozen=True, repr=False)
class widen(Operator):
    """Give a layer more hidden units, each a copy of an old one, whose work they then share.

    What comes in is copied: rows of the producer's weight and bias, and of everything that goes unit by unit
    after it (γ, β, running mean and variance of a BatchNorm, slopes of a PReLU, a depthwise convolution).
    What goes out is divided: columns of the consumers' weights. With ``equal`` this is Net2Wider (Chen et al.
    2016, arXiv:1511.05641), with ``unequal`` and ``zero`` its lossless variants (bert2BERT, LEMON).

    A norm over the units sees other statistics once some count more than others: under a LayerNorm or RMSNorm
    the function is kept only if all units have equally many copies, under a GroupNorm only if each new group
    has equally many of every unit of one old group, which takes a `mapping`. Tensors do not tell such a norm
    from one that treats every unit by itself; the comparison with ``source_model`` does.

    ``widen("fc1", ["fc2"], norms=["bn1"])``; all blocks at once:
    ``widen(["layers.*.gate", "layers.*.up"], ["layers.*.down"])``.

    Attributes:
        producer: the module, or modules, that compute the units: Linear or convolution, by path. A gated
            feed-forward has two. Stars stand for the same in `consumers` and `norms`.
        consumers: the modules that take the units in. One behind a flatten has several columns for each.
        norms: modules between them that treat every unit by itself.
        to: how many units there are to be; as many as the model has, if it is left out.
        split: how copies share the work of their original: in ``equal`` parts, in ``unequal`` random ones,
            or not at all (``zero``: the new columns are zero).
        noise_std: standard deviation of normal noise on the weights of the new units, so that they learn
            different things from now on; with it the function is kept by ``zero`` alone.
        seed: of what is drawn.
        mapping: for each new unit the old one; if it is left out, new unit j is a copy of ``j mod n``.
        optim: optimizer state: ``copy`` gives the moments that the new network's own gradients have (a unit
            that does a third of the work has a third of the gradient); ``reset`` starts it anew.
    """

    producer: str | tuple[str, ...]
    consumers: tuple[str, ...]
    norms: tuple[str, ...] = ()
    to: int | None = None
    split: Split = "equal"
    noise_std: float = 0.0
    seed: int = 0
    mapping: tuple[int, ...] | None = None
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        alike("widen", *self._producers, *self.consumers, *self.norms)
        if self.noise_std < 0:
            raise RecipeError("widen: noise_std wants a number that is not negative", key=self._producers[0])
        if self.mapping is not None and self.to is not None and len(self.mapping) != self.to:
            raise RecipeError(
                f"widen: mapping has {len(self.mapping)} units, and to is {self.to}", key=self._producers[0]
            )

    @property
    def _producers(self) -> tuple[str, ...]:
        return (self.producer,) if isinstance(self.producer, str) else self.producer

    @property
    def unkept(self) -> str:  # type: ignore[override]
        """Copies with noise are other units."""
        noisy = self.noise_std and self.split != "zero"
        return f"{self} adds noise to units that count" if noisy else ""

    # -- at work -------------------------------------------------------------------------------------------

    def plan(self, state: State, target: State) -> Plan:
        ties: dict[object, list[str]] = {}
        for key, value in state.items():
            ties.setdefault(memory(value), []).append(key)
        plan: dict[str, list[Write]] = {}
        for units in self._layers(state, target):
            for key in chain(units.rows, units.columns):
                write = self._row_write(units, key) if key in units.rows else self._column_write(units, key)
                for name in ties[memory(state[key])]:
                    plan.setdefault(name, [Write(name, (name,), write.make, write.carry)])
        return plan

    def _row_write(self, units: Units, key: str) -> Write:
        def make(tensor: torch.Tensor) -> torch.Tensor:
            new = units.more_rows(tensor)
            if self.noise_std and key in units.weights and not new.is_meta:
                sizes = [len(units.copies), *new.shape[1:]]
                new[units.copies] += drawn(new, sizes, self._noise, self.seed, key)
            return new

        def carry(squares: bool, tensor: torch.Tensor) -> torch.Tensor:
            new = units.more_rows(tensor)
            if squares and self.split == "zero":
                return new  # one that counts nothing has no gradient yet: as if it counted, for small steps
            return units.shared(new, 0, 2 if squares else 1)

        return Write(key, (key,), make, None if self.optim == "reset" else carry)

    def _column_write(self, units: Units, key: str) -> Write:
        def make(tensor: torch.Tensor) -> torch.Tensor:
            return units.shared(units.more_columns(tensor), 1)

        def carry(_: bool, tensor: torch.Tensor) -> torch.Tensor:
            return units.more_columns(tensor)

        return Write(key, (key,), make, None if self.optim == "reset" else carry)

    def _noise(self, tensor: torch.Tensor, generator: torch.Generator) -> None:
        tensor.normal_(0.0, self.noise_std, generator=generator)

    # -- which tensors -------------------------------------------------------------------------------------

    def _layers(self, state: State, target: State) -> Iterator[Units]:
        """The layers that the paths name, one for each thing that their stars stand for.

        Raises:
            RecipeError: there are none, or sizes do not fit together.
        """
        modules: dict[str, list[str]] = {}
        for key, value in state.items():
            if shape(value) is not None:
                modules.setdefault(key.rpartition(".")[0], []).append(key)
        first = self._producers[0]
        named = [module for module in modules if stars(first, module) is not None]
        if not named:
            raise self.unused(first, f"matches no module{_near(first, modules)}")
        for module in named:
            found = stars(first, module)
            assert found is not None
            yield self._units(found, module, modules, state, target)

    def _units(
        self, found: tuple[str, ...], first: str, modules: Modules, state: State, target: State
    ) -> Units:
        rows: list[str] = []
        columns: dict[str, int] = {}
        old = self._size(f"{first}.weight", state)
        for path in self._producers:
            rows += self._rows(self._tensors(filled(path, found), modules), old, state, norm=False)
        weights = [key for key in rows if len(state[key].shape) > 1]
        for path in self.norms:
            rows += self._rows(self._tensors(filled(path, found), modules), old, state, norm=True)
        for path in self.consumers:
            module = filled(path, found)
            columns |= self._columns(module, self._tensors(module, modules), old, state)
        both = [key for key in columns if key in rows]
        if both:
            raise self.unfit(both[0], "it can't give and take the same units; widen one after the other")
        origin = self._origin(f"{first}.weight", old, target)
        return Units(
            rows, weights, columns, old, origin, shares(origin, self.split, generator(self.seed, first))
        )

    def _size(self, key: str, state: State) -> int:
        sizes = shape(state.get(key))
        if not sizes:
            raise self.unfit(key, "a producer has a weight, and there is none")
        return sizes[0]

    def _rows(self, keys: Iterable[str], old: int, state: State, *, norm: bool) -> Iterator[str]:
        for key in keys:
            sizes = tuple(state[key].shape)
            if sizes and sizes[0] == old:
                yield key
            elif sizes and not (norm and sizes == (1,)):  # one slope may be for all units
                raise self.unfit(key, f"it is {shown(sizes)}, and there are {old} units")

    def _columns(self, module: str, keys: Iterable[str], old: int, state: State) -> Iterator[tuple[str, int]]:
        found = False
        for key in keys:
            sizes = tuple(state[key].shape)
            if len(sizes) > 1:
                found = True
                if sizes[1] % old or not sizes[1]:
                    raise self.unfit(key, f"it is {shown(sizes)}: its columns are no multiple of {old} units")
                yield key, sizes[1] // old
        if not found:
            raise self.unfit(module, "a consumer has a weight, and there is none")

    def _tensors(self, module: str, modules: Modules) -> Sequence[str]:
        if module not in modules:
            raise self.unused(module, f"has {python(module)}, which is no module{_near(module, modules)}")
        return modules[module]

    def _origin(self, key: str, old: int, target: State) -> tuple[int, ...]:
        wanted = shape(target.get(key))
        given = self.to or len(self.mapping or ())
        if not given and not wanted:
            raise self.unfit(key, "the model does not have it, so the number of units must be given")
        size = given or (wanted or (0,))[0]
        origin = self.mapping or tuple(unit % old for unit in range(size))
        if size <= old:
            what = "changes nothing" if size == old else "does not fit: use select for fewer units"
            raise self.unused(key, f"{what}: {python(key)} has {old} units and is to have {size}")
        if set(origin) != set(range(old)):
            raise self.unfit(key, f"mapping must name each of the units 0 to {old - 1}, and no other")
        return origin

    # -- the proof -----------------------------------------------------------------------------------------

    def prove(self, before: State, after: State, target: State) -> list[Promise]:
        """What comes in is copied, and what goes out sums up to what it was.

        So every unit's copies together give its consumers what it gave alone, if all that lies between treats
        each unit by itself; where a norm may not, that is told.
        """
        layers = list(self._layers(before, target))
        uncopied = chain(*(self._uncopied(units, before, after) for units in layers))
        unshared = chain(*(self._unshared(units, before, after) for units in layers))
        return [
            promise(f"{self}: units copied", uncopied),
            promise(f"{self}: work shared", unshared, self._condition(layers, before)),
        ]

    def _condition(self, layers: Iterable[Units], before: State) -> str:
        """Under what the function is not kept, where some units have more copies than others."""
        for units in layers:
            if len(set(Counter(units.origin).values())) == 1:
                continue
            for key in units.rows:
                module, _, leaf = key.rpartition(".")
                if leaf == "weight" and before[key].dim() == 1 and f"{module}.running_mean" not in before:
                    return f"but not under a LayerNorm, if {python(module)} is one: copies are unequally many"
        return ""

    def _uncopied(self, units: Units, before: State, after: State) -> Iterator[str]:
        for key in units.rows:
            old, new = materialise(before[key]), materialise(after[key])
            originals = torch.tensor(self.mapping or [unit % len(old) for unit in range(len(new))])
            if len(new) != len(originals) or len(new) != len(units.origin):
                yield f"{escape(key)}: {len(new)} rows for {len(units.origin)} units"
                continue
            expected = bits(old)[originals].view(old.dtype)
            if self.noise_std and key in units.weights:
                yield from differing(key, expected, new, 8 * self.noise_std)
                firsts = dict(reversed([(unit, place) for place, unit in enumerate(originals.tolist())]))
                expected, new = old, new[[firsts[unit] for unit in range(len(old))]]
            yield from differing(key, expected, new)

    def _unshared(self, units: Units, before: State, after: State) -> Iterator[str]:
        for key, block in units.columns.items():
            old, new = materialise(before[key]), materialise(after[key])
            if new.shape[1] != block * len(units.origin):
                yield f"{escape(key)}: {new.shape[1]} columns for {len(units.origin)} units"
                continue
            count = old.shape[1] // block
            originals = torch.tensor(self.mapping or [unit % count for unit in range(len(units.origin))])
            parts = _apart(new, block).double()
            summed = torch.zeros_like(_apart(old, block), dtype=torch.float64)
            summed = summed.index_add(1, originals, parts).flatten(1, 2)
            precision = max(4 * torch.finfo(new.dtype).eps, 1e-12) * float(old.double().abs().max())
            yield from differing(key, old.double(), summed, precision)
            firsts = dict(reversed([(unit, place) for place, unit in enumerate(originals.tolist())]))
            added = torch.ones(len(originals), dtype=torch.bool)
            added[list(firsts.values())] = False
            if self.split == "zero" and bool(parts[:, added].any()):
                yield f"{escape(key)}: columns of new units are not zero"

    def remarks(self, before: State, after: State, target: State) -> list[Finding]:
        """Two units with the same weights in and out get the same gradients for ever, without dropout."""
        twins = [(units, pair) for units in self._layers(before, target) if (pair := _twins(units, after))]
        if not twins:
            return []
        units, (one, other) = twins[0]
        more = f" (and so on in {len(twins) - 1} more layers)" if len(twins) > 1 else ""
        message = (
            f"units {one} and {other} are the same, coming in and going out{more}: without dropout they "
            'will learn the same; noise_std= or split="unequal" tells them apart'
        )
        return [finding("recipe-symmetric-units", units.rows[0], message=message)]


def _near(name: str, modules: Modules) -> str:
    found = " or ".join(map(python, nearest(name, modules)))
    return f": did you mean {found}?" if found else ""


def _apart(tensor: torch.Tensor, block: int) -> torch.Tensor:
    """The columns of each unit under an index of its own: (out, units, block, ...)."""
    return tensor.reshape(len(tensor), -1, block, *tensor.shape[2:])


def _twins(units: Units, after: State) -> tuple[int, int] | None:
    """A new unit and its original, if all their rows and columns have the same bits."""
    rows = [materialise(after[key]) for key in units.rows]
    columns = [_apart(materialise(after[key]), block) for key, block in units.columns.items()]
    for copy in units.copies:
        first = units.firsts[units.origin[copy]]
        if all(same_bits(each[first], each[copy]) for each in rows) and all(
            same_bits(each[:, first], each[:, copy]) for each in columns
        ):
            return first, copy
    return None
