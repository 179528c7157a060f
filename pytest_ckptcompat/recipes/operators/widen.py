"""The operator `widen`: more hidden units with the same function."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.findings import finding
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.base import Operator, did_you_mean
from pytest_ckptcompat.recipes.globs import alike, filled, stars
from pytest_ckptcompat.recipes.per_tensor import shape, tied
from pytest_ckptcompat.recipes.plan import Make, Plan, State, Write
from pytest_ckptcompat.recipes.rows import add_noise, generator
from pytest_ckptcompat.recipes.units import Split, Units, conditions, shares, twins, uncopied, unshared
from pytest_ckptcompat.tensors.difference import memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch

    from pytest_ckptcompat.core.findings import Finding

    Modules = Mapping[str, Sequence[str]]


@dataclass(frozen=True, repr=False)
class widen(Operator):
    """Widen a layer: each new hidden unit is a copy of an old one, and they share its work.

    Rows are copied: those of the producer's weight and bias, and of everything after it that treats each unit
    by itself (γ, β, running mean and variance of a BatchNorm, slopes of a PReLU, a depthwise convolution).
    Columns of the consumers' weights are divided. With ``equal`` this is Net2Wider (Chen et al. 2016,
    arXiv:1511.05641), with ``unequal`` and ``zero`` its lossless variants (bert2BERT, LEMON).

    A norm over all units computes other statistics if some units have more copies than others. Under a
    LayerNorm or RMSNorm, the function is kept only if all units have equally many copies. Under a GroupNorm,
    each new group must have equally many copies of every unit of one old group, which needs a `mapping`.
    Tensors don't show which kind of norm it is. The comparison with ``source_model`` does.

    ``widen("fc1", ["fc2"], norms=["bn1"])``; all blocks at once:
    ``widen(["layers.*.gate", "layers.*.up"], ["layers.*.down"])``.

    Attributes:
        producer: the path of the module, or modules, that compute the units: Linear or convolution. A gated
            feed-forward has two. Stars match the same text in `consumers` and `norms`.
        consumers: the modules that take the units in. After a flatten, each unit has several columns.
        norms: modules between them that treat each unit by itself.
        to: the new number of units; the model's if it is left out.
        split: how copies share the work of their original: in ``equal`` parts, in ``unequal`` random ones,
            or not at all (``zero``: the new columns are zero).
        noise_std: the standard deviation of normal noise on the weights of new units, so that they learn
            different things; only with ``zero`` is the function then kept.
        seed: the seed of random numbers.
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
            raise RecipeError("widen: noise_std must not be negative", key=self._producers[0])
        if self.mapping is not None and self.to is not None and len(self.mapping) != self.to:
            raise RecipeError(
                f"widen: mapping has {len(self.mapping)} units, and to is {self.to}", key=self._producers[0]
            )

    @property
    def _producers(self) -> tuple[str, ...]:
        return (self.producer,) if isinstance(self.producer, str) else self.producer

    def caveat(self, state: State, target: State) -> str:
        noisy = self.noise_std and self.split != "zero"
        return f"{self} adds noise to units that count" if noisy else ""

    def plan(self, state: State, target: State) -> Plan:
        ties = tied(state)
        plan: dict[str, list[Write]] = {}
        for units in self._layers(state, target):
            for key in chain(units.rows, units.columns):
                make, moments = (self._rows if key in units.rows else self._columns)(units, key)
                for name in ties[memory(state[key])]:
                    write = Write(name, (name,), make, None if self.optim == "reset" else moments)
                    plan.setdefault(name, [write])
        return plan

    def _rows(self, units: Units, key: str) -> tuple[Make, Make]:
        """Return what makes the rows, and the optimizer's values for them."""

        def make(tensor: torch.Tensor) -> torch.Tensor:
            new = units.more_rows.taken(tensor, 0)
            if self.noise_std and key in units.weights and not new.is_meta:
                add_noise(new, 0, units.more_rows.copies, self.noise_std, self.seed, key)
            return new

        def moments(squares: bool, tensor: torch.Tensor) -> torch.Tensor:
            if squares and self.split == "zero":
                # A copy with zero columns has no gradient yet. Its original's squares keep its first steps
                # small.
                return units.more_rows.taken(tensor, 0)
            return units.shared(units.more_rows, 2 if squares else 1).taken(tensor, 0)

        return make, moments

    def _columns(self, units: Units, key: str) -> tuple[Make, Make]:
        """Return what makes the columns, and the optimizer's values for them."""

        def make(tensor: torch.Tensor) -> torch.Tensor:
            return units.shared(units.more_columns(tensor)).taken(tensor, 1)

        def moments(_: bool, tensor: torch.Tensor) -> torch.Tensor:
            return units.more_columns(tensor).taken(tensor, 1)

        return make, moments

    def _layers(self, state: State, target: State) -> Iterator[Units]:
        """Yield the layers that the paths name, one for each match of their stars."""
        modules: dict[str, list[str]] = {}
        for key, value in state.items():
            if shape(value) is not None:
                modules.setdefault(key.rpartition(".")[0], []).append(key)
        pattern = self._producers[0]
        named = {module: found for module in modules if (found := stars(pattern, module)) is not None}
        if not named:
            raise self.unused(pattern, f"matches no module{did_you_mean(pattern, modules)}")
        for module, found in named.items():
            yield self._units(found, module, modules, state, target)

    def _units(
        self, found: tuple[str, ...], first: str, modules: Modules, state: State, target: State
    ) -> Units:
        weight = f"{first}.weight"
        if not (sizes := shape(state.get(weight))):
            raise self.unfit(weight, "a producer needs a weight, and it has none")
        old = sizes[0]

        def with_rows(paths: Sequence[str], *, norm: bool) -> list[str]:
            named = (key for path in paths for key in self._tensors(filled(path, found), modules))
            return [key for key in named if self._has_rows(key, old, state, norm=norm)]

        rows = with_rows(self._producers, norm=False)
        weights = [key for key in rows if len(state[key].shape) > 1]
        rows += with_rows(self.norms, norm=True)
        columns: dict[str, int] = {}
        for path in self.consumers:
            module = filled(path, found)
            taken = [key for key in self._tensors(module, modules) if len(state[key].shape) > 1]
            if not taken:
                raise self.unfit(module, "a consumer needs a weight, and it has none")
            columns |= {key: self._block(key, old, state) for key in taken}
        if both := [key for key in columns if key in rows]:
            raise self.unfit(both[0], "it can't both give and take the same units; widen one after the other")
        origin = self._origin(weight, old, target)
        parts = shares(origin, self.split, generator(self.seed, first))
        return Units(rows, weights, columns, old, origin, parts)

    def _tensors(self, module: str, modules: Modules) -> Sequence[str]:
        if module not in modules:
            hint = did_you_mean(module, modules)
            raise self.unused(module, f"has {python(module)}, which is not a module{hint}")
        return modules[module]

    def _has_rows(self, key: str, old: int, state: State, *, norm: bool) -> bool:
        """Return whether a tensor has a row for each unit; False for a number."""
        sizes = tuple(state[key].shape)
        if not sizes or (norm and sizes == (1,) and old != 1):  # a PReLU may have one slope for all units
            return False
        if not state[key].is_floating_point():
            raise self.unfit(key, "it holds no real floats")
        if sizes[0] != old:
            raise self.unfit(key, f"it is {shown(sizes)}, and there are {old} units")
        return True

    def _block(self, key: str, old: int, state: State) -> int:
        """Return how many columns of a consumer each unit has."""
        if not state[key].is_floating_point():
            raise self.unfit(key, "it holds no real floats")
        sizes: tuple[int, ...] = tuple(state[key].shape)
        if sizes[1] % old or not sizes[1]:
            raise self.unfit(key, f"it is {shown(sizes)}: its columns are not a multiple of {old} units")
        return sizes[1] // old

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

    def prove(self, before: State, after: State, target: State) -> list[Claim]:
        """Claim that incoming weights are copied, and outgoing ones sum to the old ones.

        Each unit's copies then give its consumers the same in total as before, if everything between treats
        each unit by itself. If a norm may not, the proof reports it.
        """
        layers = list(self._layers(before, target))

        def copied() -> Iterator[str]:
            for units in layers:
                yield from uncopied(units, before, after, self.mapping, self.noise_std)

        def shared() -> Iterator[str]:
            for units in layers:
                yield from unshared(units, before, after, self.mapping, self.split)

        return [
            Claim.of(f"{self}: units copied", copied),
            Claim.of(f"{self}: work shared", shared, conditions(layers, before)),
        ]

    def remarks(self, before: State, after: State, target: State) -> list[Finding]:
        """Return a finding if two units have equal weights in and out: their gradients stay the same."""
        found = [(units, pair) for units in self._layers(before, target) if (pair := twins(units, after))]
        if not found:
            return []
        units, (one, other) = found[0]
        more = f" (and so on in {len(found) - 1} more layers)" if len(found) > 1 else ""
        message = (
            f"units {one} and {other} are the same, coming in and going out{more}: without dropout they "
            'will learn the same; noise_std= or split="unequal" tells them apart'
        )
        return [finding("recipe-symmetric-units", units.rows[0], message=message)]
