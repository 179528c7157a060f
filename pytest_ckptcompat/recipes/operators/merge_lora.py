"""The operator `merge_lora`: low-rank adapters merged into their weights."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.base import Operator
from pytest_ckptcompat.recipes.per_tensor import shape
from pytest_ckptcompat.recipes.plan import Make, Plan, State, Write
from pytest_ckptcompat.recipes.promises import Computed, displaced
from pytest_ckptcompat.tensors.deferred import materialise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_ckptcompat.recipes.base import Surroundings

CONFIG = "adapter_config.json"

_PART = re.compile(
    r"(?P<module>.+)\.lora_(?:embedding_)?(?P<part>[AB])"
    r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?:\.(?P<leaf>weight|bias))?"
)
"""A factor of an adapter: ``lora_A.default.weight``, or ``lora_embedding_A.default`` in an embedding."""

_SAVED = re.compile(
    r"(?P<module>.+)\.(?:(?P<old>original_module)|modules_to_save\.(?P<adapter>[^.]+))\.(?P<rest>.+)"
)
"""A module that was trained as a whole beside the adapters, or the original that it replaces."""

_FOREIGN = re.compile(
    r"(?:^|\.)(lora_\w+|ranknum|hada_\w+|lokr_\w+|ia3_\w+|oft_\w+|boft_\w+|vera_\w+)(?:\.|$)"
)
"""Keys of other kinds of adapters, or of a LoRA with more than two factors."""


class Adapter(NamedTuple):
    """The keys of an adapter and of its layer, and how they are merged.

    `bias` belongs to `b`. The weight is (in, out) if `transposed`, as that of an `embedding` always is.
    """

    weight: str
    a: str
    b: str
    bias: str | None
    factor: float
    embedding: bool
    transposed: bool = False

    @property
    def base_bias(self) -> str:
        """The bias of the layer."""
        return self.weight.removesuffix("weight") + "bias"

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys that are merged or go."""
        return (self.weight, self.a, self.b, *([self.bias, self.base_bias] if self.bias else []))


@dataclass(frozen=True, repr=False)
class merge_lora(Operator):
    """Merge LoRA adapters, as peft names them, into the weights they adapt.

    Every weight becomes ``W + alpha/rank · B A`` (Hu et al. 2021, arXiv:2106.09685; peft's
    ``merge_and_unload``), computed in float64 and rounded once. The adapters' keys and ``base_layer`` are
    removed. Linear layers, the transposed ``Conv1D`` of GPT-2, convolutions and embeddings are known. Several
    adapters on one weight, DoRA and other kinds of adapter are refused. The base weights must be in the
    checkpoint.

    ``merge_lora("base_model.model.", alpha=16)``

    Attributes:
        prefix: removed from every key that has it: ``base_model.model.`` of peft.
        alpha: the scale is alpha over rank. If it is left out, ``adapter_config.json`` beside the checkpoint
            gives it.
        rank: compared with the adapters' own sizes, which count.
        rslora: divide by the square root of the rank instead (Kalajdzievski 2023, arXiv:2312.03732).
        fan_in_fan_out: whether weights are (in, out), as those of ``Conv1D``. If it is left out, the sizes
            tell; if all are square, they are taken for (out, in).
    """

    changes_function: ClassVar[str] = ""

    prefix: str = ""
    alpha: float | None = None
    rank: int | None = None
    rslora: bool = False
    fan_in_fan_out: bool | None = None

    def completed(self, surroundings: Surroundings) -> Self:
        """Fill in the scale from ``adapter_config.json`` beside the checkpoint.

        Raises:
            RecipeError: the file contradicts the recipe, or describes adapters of an unknown kind.
        """
        text = surroundings.beside(CONFIG)
        if text is None:
            return self
        try:
            config = json.loads(text)
            alpha = float(config["lora_alpha"])
        except (ValueError, KeyError, TypeError):
            return self
        for unknown in ("use_dora", "alpha_pattern", "use_qalora"):
            if config.get(unknown):
                raise self.unfit(CONFIG, f"it has {unknown}, which merge_lora does not know; {_BY_PEFT}")
        if self.alpha is not None and self.alpha != alpha:
            raise self.unfit(CONFIG, f"alpha is {self.alpha:g}, and it has lora_alpha {alpha:g}")
        fan = self.fan_in_fan_out
        return replace(
            self,
            alpha=alpha,
            rslora=self.rslora or config.get("use_rslora") is True,
            fan_in_fan_out=config.get("fan_in_fan_out") is True if fan is None else fan,
        )

    def plan(self, state: State, target: State) -> Plan:
        adapters = self._adapters(state)
        if self.prefix and all(self._named(key) == key.replace(".base_layer.", ".") for key in state):
            raise self.unused(self.prefix, f"has the prefix {python(self.prefix)}, which no key has")
        plan: dict[str, list[Write]] = {}
        for adapter in adapters:
            sources = (adapter.weight, adapter.a, adapter.b)
            merged = _plus(adapter, (lambda a, b: _matrix(a, b).T) if adapter.transposed else _matrix)
            plan[adapter.weight] = [Write(self._named(adapter.weight), sources, merged)]
            plan |= {adapter.a: [], adapter.b: []}
            if adapter.bias is not None:
                base = adapter.base_bias
                if base not in state:
                    raise self.unfit(adapter.bias, "the adapter has a bias, and its layer has none")
                plan[base] = [Write(self._named(base), (base, adapter.bias), _plus(adapter, torch.clone))]
                plan[adapter.bias] = []
        saved = {key: found for key in state if (found := _SAVED.fullmatch(key))}
        replaced = {found["module"] for found in saved.values() if found["adapter"]}
        for key in state:
            if key in saved and saved[key]["old"] and saved[key]["module"] in replaced:
                plan.setdefault(key, [])
            elif (name := self._named(key)) != key:
                plan.setdefault(key, [Write(name, (key,))])
        return plan

    def destination(self, key: str) -> str | None:
        return None if _PART.fullmatch(key) else self._named(key)

    def _named(self, key: str) -> str:
        """Return the name of a key without adapters and prefix."""
        found = _SAVED.fullmatch(key)
        if found and found["adapter"]:
            key = f"{found['module']}.{found['rest']}"
        prefix = f"{self.prefix.rstrip('.')}." if self.prefix else ""
        return key.removeprefix(prefix).replace(".base_layer.", ".")

    def _adapters(self, state: State) -> list[Adapter]:
        """Return the adapters, module by module."""
        modules: dict[str, dict[str, dict[str, str]]] = {}
        for key in state:
            if found := _PART.fullmatch(key):
                part = found["part"] + (" bias" if found["leaf"] == "bias" else "")
                named = modules.setdefault(found["module"], {})
                named.setdefault(found["adapter"] or "", {})[part] = key
            elif found := _FOREIGN.search(key):
                raise self.unfit(key, f"{python(found[1])} belongs to another kind of adapter; {_BY_PEFT}")
        if not modules:
            raise self.unused(self.prefix, "matches nothing: the checkpoint has no lora_A and lora_B")
        if not any(self._weight(module, state) for module in modules):
            raise self.unfit(
                min(next(iter(next(iter(modules.values())).values())).values()),
                f"the checkpoint has adapters alone, without the weights that they adapt; {_BY_PEFT}",
            )
        adapters = []
        for module, named in modules.items():
            if len(named) > 1:
                listed = ", ".join(map(python, sorted(named)))
                raise self.unfit(module, f"it has several adapters ({listed}); {_BY_PEFT}")
            (parts,) = named.values()
            adapters.append(self._adapter(module, parts, state))
        transposed = self._transposed(adapters, state)
        return [each._replace(transposed=each.embedding or transposed) for each in adapters]

    def _weight(self, module: str, state: State) -> str | None:
        names = (f"{module}.base_layer.weight", f"{module}.weight")
        return next((name for name in names if shape(state.get(name)) is not None), None)

    def _adapter(self, module: str, parts: dict[str, str], state: State) -> Adapter:
        keys = {"lora_A": parts.get("A"), "lora_B": parts.get("B"), "weight": self._weight(module, state)}
        if absent := [part for part, key in keys.items() if key is None]:
            raise self.unfit(module, f"there is no {absent[0]} of it in the checkpoint")
        a, b, weight = map(str, keys.values())
        if not state[weight].is_floating_point():
            raise self.unfit(weight, f"its weight is quantised; {_BY_PEFT}")
        sizes = shape(state[a])
        if not sizes or not sizes[0]:
            raise self.unfit(a, f"it is {shown(sizes or ())}, which gives no rank")
        rank = sizes[0]
        if self.rank not in (None, rank):
            raise self.unfit(a, f"it has rank {rank}, and rank={self.rank}")
        if self.alpha is None:
            raise RecipeError(
                f"{self} needs alpha=, since adapters are scaled by alpha/rank: there is no {CONFIG} beside "
                "the checkpoint",
                key=a,
            )
        factor = self.alpha / (sqrt(rank) if self.rslora else rank)
        return Adapter(weight, a, b, parts.get("B bias"), factor, embedding=".lora_embedding_" in a)

    def _transposed(self, adapters: list[Adapter], state: State) -> bool:
        """Return whether the weights are (in, out), and check the sizes."""
        said = set() if self.fan_in_fan_out is None else {self.fan_in_fan_out}
        for adapter in adapters:
            weight, a, b = (shape(state[key]) or () for key in (adapter.weight, adapter.a, adapter.b))
            made = (*b[:1], *a[1:])
            fits = {flip for flip in (False, True) if weight == (made[::-1] if flip else made)}
            if adapter.embedding:
                fits &= {True}
            if not fits or a[:1] != b[1:2] or len(a) != len(b):
                raise self.unfit(adapter.weight, f"it is {shown(weight)}, with {shown(a)} and {shown(b)}")
            if len(fits) == 1 and not adapter.embedding:
                said |= fits
        if len(said) > 1:
            raise self.unfit(adapters[0].weight, "some weights are (in, out) and others (out, in)")
        return said == {True}

    def prove(self, before: State, after: State, target: State) -> Iterator[Claim]:
        """Claim that new weights and biases are the old ones plus the scaled products, rounded once."""
        computed = Computed()

        def faults() -> Iterator[str]:
            for key, exact, scale in self._exact(before):
                name = self._named(key)
                yield from computed.faults(name, exact, after.get(name), scale, ulps=2)
            if left := [key for key in after if _PART.fullmatch(key)]:
                yield f"{escape(left[0])} is still there"

        def rest() -> Iterator[str]:
            merged = {key for each in self._adapters(before) for key in each.keys}
            yield from displaced(
                before,
                after,
                lambda key: None if key in merged or ".original_module." in key else self._named(key),
            )

        yield Claim.of(f"{self}: weights plus scaled products", faults, lambda: str(computed))
        yield Claim.of(f"{self}: the rest is unchanged", rest, "bit for bit")

    def _exact(self, before: State) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Yield the old key of each merged tensor, its values in float64, and the scale of their rounding."""
        for each in self._adapters(before):
            old, a, b = (materialise(before[key]).double() for key in (each.weight, each.a, each.b))
            yield each.weight, *_sums(each, old, _einsum(each, a, b), _einsum(each, a.abs(), b.abs()))
            if each.bias is not None:
                old, more = (materialise(before[key]).double() for key in (each.base_bias, each.bias))
                yield each.base_bias, *_sums(each, old, more, more.abs())


def _einsum(adapter: Adapter, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Compute ``B A`` in another way, for the proof."""
    product: torch.Tensor = torch.einsum("or,r...->o...", b.flatten(1), a)
    return product.T if adapter.transposed else product


def _sums(
    adapter: Adapter, old: torch.Tensor, more: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the merged values, and the sum of the absolute ones, to which the rounding is relative."""
    return old + adapter.factor * more, old.abs() + abs(adapter.factor) * scale


_BY_PEFT = "merge them with peft's merge_and_unload(), and save that"


def _plus(adapter: Adapter, product: Callable[..., torch.Tensor]) -> Make:
    """Return what adds a scaled product of adapters to a tensor, in float64."""

    def make(old: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        if old.is_meta:
            return old.new_empty(old.shape)
        more = product(*(each.double() for each in factors))
        return (old.double() + adapter.factor * more.reshape(old.shape)).to(old.dtype)

    return make


def _matrix(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return ``B A``. In a convolution, A has the kernel and B mixes channels."""
    return b.flatten(1) @ a.flatten(1)
