"""The parts of a checkpoint that hold tensors, and which of them is the model's state dict.

A part is judged by its content: it should have keys like those of ``state_dict()`` (dotted, or usual names
of parameters and buffers), and not be the state of an optimizer or random generator. The names of parts only
decide between parts with similar content.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.tensor_spec import TensorSpec
from pytest_ckptcompat.formats.pickle_stubs import Branch, Stub, children

from .entries import (
    is_extra_state,
    is_module,
    is_training_state,
    module_entries,
    named_as_in_models,
    serves_training,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_ckptcompat.core.limits import Limits

USUAL = (
    "state_dict", "model_state_dict", "model", "module", "net", "ema", "model_state", "network", "weights",
    "params", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict",
    "params_ema", "net_state_dict", "model_weights",
)  # fmt: skip
"""Usual names of the state dict in a checkpoint."""

_ANOTHER = re.compile(
    r"(?<![a-z])(ema|swa|avg|averaged?|mean|polyak|shadow|best|last|teacher|student|target)(?![a-z])",
    re.IGNORECASE,
)
"""How people call another state of the same model."""

DEEPEST = 3
"""How many levels below the outermost object a state dict is looked for."""

_CONTAINERS = (dict, list, tuple, Stub)
_MOST_CONTAINERS = 100_000


@dataclass(eq=False)
class Candidate:
    """A part of a checkpoint that may be the state dict.

    Attributes:
        path: the dotted path from the outermost object, which itself has ``""``.
        name: the last part of the path.
        node: a dict, a pickled module, or a container of these.
        depth: the number of levels below the outermost object.
        own: the number of tensors directly in it. A pickled module with tensors counts as 1.
        model_like: whether some of its own tensors have names as in a model.
        inner: the candidates inside.
    """

    path: str
    name: str
    node: object
    depth: int = 0
    own: int = 0
    model_like: bool = False
    inner: list[Candidate] = field(default_factory=list)

    @property
    def tensors(self) -> int:
        """The number of tensors in it, including its parts."""
        return sum(each.own for each in self.walk())

    @property
    def holds_a_model(self) -> bool:
        """Whether it or a part of it has tensors with names as in a model."""
        return any(each.model_like for each in self.walk())

    def is_another(self, other: Candidate) -> bool:
        """Return whether it is another state of the same model, such as an average, by name and keys."""
        one, two = self.node, other.node
        if not _ANOTHER.search(self.name):
            return False
        if isinstance(one, dict) and isinstance(two, dict):
            return self.own > 0 and one.keys() == two.keys()
        if isinstance(one, Stub) and isinstance(two, Stub):
            return is_module(one) and is_module(two) and one.name == two.name
        return False

    def walk(self) -> Iterator[Candidate]:
        """Yield the candidate and all candidates inside, from the outside in."""
        pending = [self]
        for each in pending:  # grows during the iteration
            pending.extend(each.inner)
        yield from pending


def survey(tree: object, limits: Limits) -> Candidate:
    """Find the parts that hold tensors, except training state. A shared part is found once."""
    root = Candidate("", "", tree)
    found = [root]
    seen = {id(tree)}
    for each in found:  # breadth first
        if is_module(each.node):
            each.own = int(
                any(isinstance(value, TensorSpec) for _, value in module_entries(each.node, limits))
            )
            each.model_like = True
        elif not is_training_state(each.node):
            for name, part in _parts(each):
                if len(seen) >= _MOST_CONTAINERS:
                    break
                if id(part) not in seen and not is_extra_state(name) and not serves_training(name):
                    seen.add(id(part))
                    path = f"{each.path}.{name}".removeprefix(".")
                    each.inner.append(Candidate(path, name, part, each.depth + 1))
            found.extend(each.inner)
    for each in reversed(found):
        each.inner = [inside for inside in each.inner if inside.own or inside.inner]
    return root


def _parts(candidate: Candidate) -> Iterator[tuple[str, object]]:
    """Yield the containers inside, and count the candidate's own tensors."""
    node = candidate.node
    named = node.items() if isinstance(node, dict) else children(node)
    has_names = isinstance(node, (dict, Stub))
    for name, part in named:
        if isinstance(part, TensorSpec):
            if not has_names or not isinstance(name, str):
                continue
            if named_as_in_models(name):
                candidate.model_like = True
            elif serves_training(name):
                continue
            candidate.own += 1
        elif isinstance(part, _CONTAINERS) and isinstance(name, (str, int)):
            yield str(name), part


def meant(root: Candidate) -> list[Candidate]:
    """Return the candidates that may be the state dict: one if it is clear, none if there is none.

    The shallowest parts with a usual name are preferred, together with other states of the same model
    (``swa_net`` beside ``net``). If a part has several parts with tensors and none of its own
    (``model: {"encoder": .., "decoder": ..}``), it is the first candidate. Parts more than three levels deep
    are ignored.
    """
    while True:
        usual = _usual(root)
        contenders = usual or _contenders(root)
        if len(contenders) == 1 and contenders[0] is not root:
            (root,) = contenders
        elif len(contenders) > 1 and not usual and not root.own:
            # A distributed checkpoint's keys are one state dict, split at the dots.
            return [root] if isinstance(root.node, Branch) else [root, *contenders]
        else:
            return [each for each in contenders if each.depth <= DEEPEST]


def _usual(root: Candidate) -> list[Candidate]:
    """Return the shallowest parts with a usual name; only those with a model if any part has one."""
    level = root.inner
    model = root.holds_a_model
    for _ in range(1 if root.model_like else DEEPEST):
        found = [each for each in level if each.name in USUAL and (each.holds_a_model or not model)]
        if found:
            found += [each for each in level if each not in found and any(map(each.is_another, found))]
            return (
                [root, *found]
                if root.model_like and max(each.tensors for each in found) < root.own
                else found
            )
        level = [inside for each in level if not is_module(each.node) for inside in each.inner]
    return []


def _contenders(root: Candidate) -> list[Candidate]:
    """Return the candidate if it holds tensors, and its parts; only those with a model if any has one."""
    own = [root] if root.own else []
    if model := [
        *(each for each in own if each.model_like),
        *(each for each in root.inner if each.holds_a_model),
    ]:
        return model
    return own + root.inner
