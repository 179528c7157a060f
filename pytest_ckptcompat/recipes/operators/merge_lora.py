"""The operator `merge_lora`: low-rank adapters merged into their weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import sqrt
from typing import TYPE_CHECKING, ClassVar, Self

import torch

from pytest_ckptcompat.core.claim import Claim
from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.adapters import FOREIGN, PART, SAVED, Adapter
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.base import Operator
from pytest_ckptcompat.recipes.per_tensor import shape
from pytest_ckptcompat.recipes.plan import Plan, State, Write
from pytest_ckptcompat.recipes.promises import differing
from pytest_ckptcompat.tensors.deferred import materialise
from pytest_ckptcompat.tensors.difference import magnitude

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_ckptcompat.recipes.base import Surroundings

CONFIG = "adapter_config.json"


@dataclass(frozen=True, repr=False)
class merge_lora(Operator):
    """Merge LoRA adapters, as peft names them, into the weights they adapt.

    Every weight becomes ``W + alpha/rank · B A`` (Hu et al. 2021, arXiv:2106.09685; peft's
    ``merge_and_unload``), computed in float64 and rounded once; the adapters' keys and ``base_layer`` go.
    Linear layers, the transposed ``Conv1D`` of GPT-2, convolutions and embeddings are known. Several adapters
    on one weight, DoRA and other kinds of adapter are refused. The base weights must be in the checkpoint.

    ``merge_lora("base_model.model.", alpha=16)``

    Attributes:
        prefix: taken off every key that has it: ``base_model.model.`` of peft.
        alpha: the scale is alpha over rank. If it is left out, ``adapter_config.json`` beside the checkpoint
            gives it.
        rank: only checked: the adapters' own sizes count.
        rslora: divide by the square root of the rank instead (Kalajdzievski 2023, arXiv:2312.03732).
        fan_in_fan_out: whether weights are (in, out), as those of ``Conv1D``. If it is left out, the sizes
            tell, and where all are square, they are taken for (out, in).
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
        adapters = list(self._adapters(state))
        transposed = self._transposed(adapters, state)
        if self.prefix and all(self._named(key) == key.replace(".base_layer.", ".") for key in state):
            raise self.unused(self.prefix, f"has the prefix {python(self.prefix)}, which no key has")
        plan: dict[str, list[Write]] = {}
        for adapter in adapters:
            factor = self._factor(adapter, state)
            merge = _merged(factor, adapter.embedding or transposed)
            sources = (adapter.weight, adapter.a, adapter.b)
            plan[adapter.weight] = [Write(self._named(adapter.weight), sources, merge)]
            plan |= {adapter.a: [], adapter.b: []}
            if adapter.bias is not None:
                base = adapter.weight.removesuffix("weight") + "bias"
                if base not in state:
                    raise self.unfit(adapter.bias, "the adapter has a bias, and its layer has none")
                plan[base] = [Write(self._named(base), (base, adapter.bias), _added(factor))]
                plan[adapter.bias] = []
        replaced = {found["module"] for key in state if (found := SAVED.fullmatch(key)) and found["adapter"]}
        for key in state:
            found = SAVED.fullmatch(key)
            if key in plan:
                continue
            if found and found["old"] and found["module"] in replaced:
                plan[key] = []
            elif (name := self._named(key)) != key:
                plan[key] = [Write(name, (key,))]
        return plan

    def destination(self, key: str) -> str | None:
        return None if PART.fullmatch(key) else self._named(key)

    def _named(self, key: str) -> str:
        """Return the name of a key without adapters and prefix."""
        found = SAVED.fullmatch(key)
        if found and found["adapter"]:
            key = f"{found['module']}.{found['rest']}"
        prefix = f"{self.prefix.rstrip('.')}." if self.prefix else ""
        return key.removeprefix(prefix).replace(".base_layer.", ".")

    # -- which tensors -------------------------------------------------------------------------------------

    def _adapters(self, state: State) -> Iterator[Adapter]:
        """Yield the adapters, module by module.

        Raises:
            RecipeError: there are none, or some of an unknown kind.
        """
        modules: dict[str, dict[str, str]] = {}
        names: dict[str, set[str]] = {}
        for key in state:
            found = PART.fullmatch(key)
            if found is None:
                self._refuse_foreign(key)
                continue
            part = found["part"] + ("" if found["leaf"] != "bias" else " bias")
            modules.setdefault(found["module"], {})[f"{found['adapter'] or ''}/{part}"] = key
            names.setdefault(found["module"], set()).add(found["adapter"] or "")
        if not modules:
            raise self.unused(self.prefix, "matches nothing: the checkpoint has no lora_A and lora_B")
        if not any(self._weight(module, state) for module in modules):
            raise self.unfit(
                next(iter(modules.values()))[min(next(iter(modules.values())))],
                f"the checkpoint has adapters alone, without the weights that they adapt; {_BY_PEFT}",
            )
        for module, keys in modules.items():
            if len(names[module]) > 1:
                listed = ", ".join(map(python, sorted(names[module])))
                raise self.unfit(module, f"it has several adapters ({listed}); {_BY_PEFT}")
            yield self._adapter(module, min(names[module]), keys, state)

    def _adapter(self, module: str, name: str, keys: dict[str, str], state: State) -> Adapter:
        a, b, weight = keys.get(f"{name}/A"), keys.get(f"{name}/B"), self._weight(module, state)
        for part, found in (("lora_A", a), ("lora_B", b), ("weight", weight)):
            if found is None:
                raise self.unfit(module, f"there is no {part} of it in the checkpoint")
        assert a is not None
        assert b is not None
        assert weight is not None
        if not state[weight].is_floating_point():
            raise self.unfit(weight, f"its weight is quantised; {_BY_PEFT}")
        return Adapter(module, weight, a, b, keys.get(f"{name}/B bias"), ".lora_embedding_" in a)

    def _weight(self, module: str, state: State) -> str | None:
        names = (f"{module}.base_layer.weight", f"{module}.weight")
        return next((name for name in names if shape(state.get(name)) is not None), None)

    def _refuse_foreign(self, key: str) -> None:
        found = FOREIGN.search(key)
        if found:
            raise self.unfit(key, f"{python(found[1])} belongs to another kind of adapter; {_BY_PEFT}")

    def _factor(self, adapter: Adapter, state: State) -> float:
        """Return the scale of an adapter's product."""
        rank = state[adapter.a].shape[0]
        if self.rank is not None and self.rank != rank:
            raise self.unfit(adapter.a, f"it has rank {rank}, and rank={self.rank}")
        if self.alpha is None:
            raise RecipeError(
                f"{self} needs alpha=, since adapters are scaled by alpha/rank: there is no {CONFIG} beside "
                "the checkpoint",
                key=adapter.a,
            )
        return self.alpha / (sqrt(rank) if self.rslora else rank)

    def _transposed(self, adapters: list[Adapter], state: State) -> bool:
        """Return whether the weights are (in, out), and check the sizes."""
        said: set[bool] = set()
        for adapter in adapters:
            weight, a, b = (tuple(state[key].shape) for key in (adapter.weight, adapter.a, adapter.b))
            made = (*b[:1], *a[1:])
            if adapter.embedding:
                fits = {True} if weight == made[::-1] else set()
            else:
                fits = {flip for flip in (False, True) if weight == (made[::-1] if flip else made)}
            if not fits or a[0] != b[1] or len(a) != len(b):
                raise self.unfit(adapter.weight, f"it is {shown(weight)}, with {shown(a)} and {shown(b)}")
            if len(fits) == 1 and not adapter.embedding:
                said |= fits
        if self.fan_in_fan_out is not None:
            said.add(self.fan_in_fan_out)
        if len(said) > 1:
            raise self.unfit(adapters[0].weight, "some weights are (in, out) and others (out, in)")
        return said == {True}

    # -- the proof -----------------------------------------------------------------------------------------

    def prove(self, before: State, after: State, target: State) -> Iterator[Claim]:
        """Claim that the new weight is the old one plus the scaled product, rounded once, row by row."""
        worst = 0.0

        def faults() -> Iterator[str]:
            nonlocal worst
            adapters = list(self._adapters(before))
            transposed = self._transposed(adapters, before)
            for adapter in adapters:
                name = self._named(adapter.weight)
                new, old = after.get(name), materialise(before[adapter.weight])
                if not isinstance(new, torch.Tensor) or new.shape != old.shape:
                    yield f"{escape(name)}: it is not there in the size of the old weight"
                    return
                a, b = (materialise(before[key]).double() for key in (adapter.a, adapter.b))
                factor, flip = self._factor(adapter, before), adapter.embedding or transposed
                sides = (_outputs(each, flip) for each in (materialise(new), old))
                for place, (row, was) in enumerate(zip(*sides, strict=True)):
                    product = torch.tensordot(b[place].flatten(), a, 1).reshape(was.shape)
                    exact = was.double() + factor * product
                    apart = float((row.double() - exact).abs().max())
                    allowed = 2 * torch.finfo(new.dtype).eps * float(exact.abs().max())
                    worst = max(worst, apart)
                    if not apart <= allowed + torch.finfo(new.dtype).tiny:
                        yield f"{escape(name)}: row {place} is off by {magnitude(apart)}"
                        return
            if left := [key for key in after if PART.fullmatch(key)]:
                yield f"{escape(left[0])} is still there"

        def rest() -> Iterator[str]:
            merged: set[str | None] = set()
            for each in self._adapters(before):
                merged |= {each.weight, each.a, each.b, each.bias}
                merged |= {each.weight.removesuffix("weight") + "bias"} if each.bias else set()
            for key, old in before.items():
                if key not in merged and ".original_module." not in key and isinstance(old, torch.Tensor):
                    found = after.get(self._named(key))
                    if found is None:
                        yield f"there is no {escape(self._named(key))}"
                    elif found is not old:
                        yield from differing(key, old, found)

        yield Claim.of(f"{self}: weights plus scaled products", faults, lambda: f"max |Δ| {magnitude(worst)}")
        yield Claim.of(f"{self}: the rest is unchanged", rest, "bit for bit")


_BY_PEFT = "merge them with peft's merge_and_unload(), and save that"


def _outputs(tensor: torch.Tensor, transposed: bool) -> tuple[torch.Tensor, ...]:
    return tensor.unbind(1 if transposed else 0)


def _merged(factor: float, transposed: bool) -> Callable[..., torch.Tensor]:
    """Return ``W + factor · B A`` in float64. In a convolution, A has the kernel and B mixes channels."""

    def make(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if weight.is_meta:
            return weight.new_empty(weight.shape)
        product = b.double().flatten(1) @ a.double().flatten(1)
        shaped = product.T if transposed else product.reshape(weight.shape)
        return (weight.double() + factor * shaped).to(weight.dtype)

    return make


def _added(factor: float) -> Callable[..., torch.Tensor]:
    def make(bias: torch.Tensor, more: torch.Tensor) -> torch.Tensor:
        if bias.is_meta:
            return bias.new_empty(bias.shape)
        return (bias.double() + factor * more.double()).to(bias.dtype)

    return make
