"""The operators `concat`, `split`, `stack_tensors` and `unbind`: one tensor of several, and the reverse."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pytest_ckptcompat.core.errors import RecipeError
from pytest_ckptcompat.core.keys import natural
from pytest_ckptcompat.core.tensor_spec import shown
from pytest_ckptcompat.recipes.arguments import python
from pytest_ckptcompat.recipes.globs import alike, filled, stars
from pytest_ckptcompat.recipes.per_tensor import shape
from pytest_ckptcompat.recipes.regrouping import Joining, Parting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_ckptcompat.recipes.plan import State


@dataclass(frozen=True, repr=False)
class concat(Joining):
    """Concatenate: ``concat(["*.q.weight", "*.k.weight", "*.v.weight"], "*.qkv.weight", dim=0)``.

    Attributes:
        keys: exact keys or globs, in the order in which they are joined; their stars match the same text.
        to: the name of the new tensor, with as many stars.
        dim: the dimension along which they are joined.
        optim: optimizer state: ``copy`` joins it as well, ``reset`` starts it anew.
    """

    keys: tuple[str, ...]
    to: str
    dim: int
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        alike("concat", *self.keys, self.to)

    @property
    def taken(self) -> tuple[str, ...]:
        return self.keys


@dataclass(frozen=True, repr=False)
class split(Parting):
    """Split a tensor: ``split("*.qkv.weight", ["*.q.weight", "*.k.weight", "*.v.weight"], dim=0)``.

    Attributes:
        key: an exact key or a glob.
        to: the names of the parts, with as many stars.
        dim: the dimension along which it is cut.
        sizes: the sizes of the parts; if they are left out, the model's, or equal ones if it lacks the parts.
        optim: optimizer state: ``copy`` cuts it as well, ``reset`` starts it anew.
    """

    key: str
    to: tuple[str, ...]
    dim: int
    sizes: tuple[int, ...] | None = None
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        alike("split", self.key, *self.to)

    def parts(self, key: str, state: State, target: State) -> list[tuple[str, int]]:
        has = self.checked(key, state)
        names = [filled(pattern, stars(self.key, key) or ()) for pattern in self.to]
        whole = has[self.dim]
        if self.sizes is not None:
            sizes = list(self.sizes)
        else:
            wanted = [shape(target.get(name)) for name in names]
            known = [each[self.dim] for each in wanted if each is not None and len(each) == len(has)]
            sizes = known if len(known) == len(names) else [whole // len(names)] * len(names)
        if sum(sizes) != whole or len(sizes) != len(names):
            raise self.unfit(key, f"dimension {self.dim} has {whole}, which is not cut into {sizes}")
        return list(zip(names, sizes, strict=True))


@dataclass(frozen=True, repr=False)
class stack_tensors(Joining):
    """Stack tensors of one shape along a new dimension (`torch.stack`).

    Separate experts become one fused tensor:
    ``stack_tensors("layers.*.experts.*.w1.weight", "layers.*.experts.w1", dim=0)``
    (transformers' ``MergeModulelist``).

    Attributes:
        keys: one glob, whose last star counts the tensors, in natural order (``experts.2`` before
            ``experts.10``); or a list of exact keys or globs, in the order in which they are stacked.
        to: the name of the new tensor: with one star less than a single glob, or with as many as each key of
            a list.
        dim: the place of the new dimension.
        optim: optimizer state: ``copy`` stacks it as well, ``reset`` starts it anew.
    """

    new_dimension: ClassVar[bool] = True

    keys: str | tuple[str, ...]
    to: str
    dim: int = 0
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.keys, tuple):
            alike("stack_tensors", *self.keys, self.to)
        elif self.keys.count("*") != self.to.count("*") + 1:
            raise RecipeError(
                f"stack_tensors: {python(self.keys)} needs one star more than {python(self.to)}: "
                "the last one counts the tensors",
                key=self.keys,
            )

    @property
    def taken(self) -> tuple[str, ...]:
        return (self.keys,) if isinstance(self.keys, str) else self.keys

    def groups(self, state: State) -> Iterator[tuple[str, tuple[str, ...]]]:
        if not isinstance(self.keys, str):
            yield from super().groups(state)
            return
        counted: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
        for key in self.matched(self.keys, state):
            counted[(stars(self.keys, key) or ())[:-1]].append(key)
        for values, found in counted.items():
            yield filled(self.to, values), tuple(sorted(found, key=natural))

    def check(self, name: str, sources: Sequence[str], state: State, target: State) -> None:
        super().check(name, sources, state, target)
        made, wanted = list(state[sources[0]].shape), shape(target.get(name))
        made.insert(self.dim % (len(made) + 1), len(sources))
        if wanted not in (None, tuple(made)):
            why = f"{len(sources)} tensors make {shown(tuple(made))}, and the model has {shown(wanted)}"
            raise self.unfit(sources[0], why)


@dataclass(frozen=True, repr=False)
class unbind(Parting):
    """Unbind a tensor along a dimension, which disappears (`torch.unbind`).

    A fused tensor becomes separate experts:
    ``unbind("layers.*.experts.w1", "layers.*.experts.*.w1.weight")``.

    Attributes:
        key: an exact key or a glob.
        to: one name with one star more than `key`, whose last one counts from 0; or a list of names with as
            many stars.
        dim: the dimension that is removed.
        optim: optimizer state: ``copy`` takes it apart as well, ``reset`` starts it anew.
    """

    new_dimension: ClassVar[bool] = True

    key: str
    to: str | tuple[str, ...]
    dim: int = 0
    optim: Literal["copy", "reset"] = "copy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.to, tuple):
            alike("unbind", self.key, *self.to)
        elif self.to.count("*") != self.key.count("*") + 1:
            raise RecipeError(
                f"unbind: {python(self.to)} needs one star more than {python(self.key)}: "
                "the last one counts the tensors",
                key=self.key,
            )

    def parts(self, key: str, state: State, target: State) -> list[tuple[str, int]]:
        count, values = self.checked(key, state)[self.dim], stars(self.key, key) or ()
        if isinstance(self.to, str):
            return [(filled(self.to, (*values, str(place))), 1) for place in range(count)]
        if len(self.to) != count:
            raise self.unfit(key, f"dimension {self.dim} has {count}, and to has {len(self.to)} names")
        return [(filled(pattern, values), 1) for pattern in self.to]
