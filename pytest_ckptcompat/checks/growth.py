"""The growth of a checkpoint. Its optimizers are grown, kept, left out or refused, one by one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import MisfitError
from pytest_ckptcompat.core.escape import escape, listed
from pytest_ckptcompat.core.findings import finding
from pytest_ckptcompat.core.tensor_spec import TensorSpec
from pytest_ckptcompat.optimizer import faults
from pytest_ckptcompat.optimizer.layouts import state_dict
from pytest_ckptcompat.optimizer.naming import naming, one_state
from pytest_ckptcompat.optimizer.resumption import Training
from pytest_ckptcompat.optimizer.slots import unread_part
from pytest_ckptcompat.optimizer.state import rank, saved_states
from pytest_ckptcompat.optimizer.trial import OptimizerError, ghosts, groups_of, made

from .waivers import unwaived

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch
    from torch import nn

    from pytest_ckptcompat.checkpoint.checkpoint import Checkpoint
    from pytest_ckptcompat.checkpoint.written import Content
    from pytest_ckptcompat.optimizer.resumption import Resumption
    from pytest_ckptcompat.optimizer.state import Naming, Saved, State
    from pytest_ckptcompat.recipes.applied import Applied
    from pytest_ckptcompat.recipes.recipe import Recipe

    from .waivers import Waiver

_SHOWN = 3


@dataclass(frozen=True)
class Growth:
    """How an old checkpoint becomes a new one; see `apply` for the attributes.

    `applied` is the result of the recipe on the stored values.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    applied: Applied
    model: nn.Module
    source_model: nn.Module | None = None
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None
    allow: Sequence[Waiver] = ()

    def rewrite(
        self, content: Content, checkpoint: Checkpoint | None = None, *, by_name: bool = False
    ) -> Iterator[str]:
        """Rewrite each optimizer's state in the content to be written, and yield a note on each.

        Args:
            content: the object to be written.
            checkpoint: the file that holds the state, if it has its own file.
            by_name: whether to key numbered state by name, as distributed checkpoints do.

        Raises:
            MisfitError: the parameters of a state can't be determined, or its shapes don't match them.
        """
        holder = self.checkpoint if checkpoint is None else checkpoint
        found = saved_states(holder.wrapper)
        if not found and checkpoint is not None:
            raise MisfitError(f"{checkpoint.name} holds no optimizer state")
        named = self._named(found)
        for saved in found:
            where, names = saved.path or holder.name, named.get(id(saved))
            try:
                if names is None:
                    self._hold_unchanged(saved)
                    yield f"{where} is kept as it was: the recipe changes nothing that it is about"
                    continue
                resumption = self._resumption(where, saved, names, holder)
                parameters = dict(self.model.named_parameters())
                written = state_dict(resumption, parameters, by_name=by_name)
            except LookupError as reason:
                content.leave_out(saved.node)
                yield f"{where} is left out: {reason}"
                continue
            content.instead(saved.node, content.of(written))
            rest = f", without the state of {_reasons(resumption.left_out)}" if resumption.left_out else ""
            yield f"{where} {'is grown too' if self.applied.touched else 'is taken along'}{rest}"

    # -- which parameter owns it ---------------------------------------------------------------------------

    def _named(self, found: list[Saved]) -> dict[int, Naming]:
        """Return id(state) -> the names of its parameters, for the states to be rewritten.

        If several states are for the same parameters, the usual place wins, as in `check`.
        """
        named: dict[int, Naming] = {}
        taken: set[str] = set()
        if self.optimizer is not None and found:
            try:
                saved, names = one_state(found, self._training().evidence)
            except LookupError as reason:
                self._refuse(str(reason), found)
            else:
                named[id(saved)] = names
                taken |= {name for group in names for name in group}
        alone = self._training(optimizer=False).evidence
        last = ""
        for saved in found:
            if id(saved) in named or saved.unread:
                continue
            try:
                names = naming(saved, alone)
            except LookupError as reason:
                if not named or self.optimizer is None:
                    self._refuse(str(reason), [saved])
                continue
            mine = {name for group in names for name in group}
            if taken.isdisjoint(mine):
                named[id(saved)] = names
                taken |= mine
            elif self.optimizer is None and last and rank(saved.place) == rank(last):
                self._refuse(
                    f"{last} and {saved.path} both fit the parameters: which is meant can't be determined",
                    [saved],
                )
            last = last or saved.place
        return named

    @cached_property
    def changed(self) -> set[str]:
        """The old keys whose value, name or place changed, or that were dropped."""
        applied = self.applied
        same = {key for key, old in applied.origin.items() if old == key and key not in applied.touched}
        return {key for key in self.checkpoint if key not in same}

    @property
    def changed_shapes(self) -> set[tuple[int, ...]]:
        """The shapes of these keys in the old checkpoint."""
        return {self.checkpoint[key].shape for key in self.changed}

    def _refuse(self, reason: str, found: list[Saved]) -> None:
        """Refuse states that an argument could settle, unless waived; unreadable ones are left out."""
        if all(saved.unread or self._indifferent(saved) for saved in found):
            return
        reason = f"{reason}. A .safetensors file would hold the weights alone"
        if unwaived([finding("optimizer-error", message=reason)], self.allow):
            raise MisfitError(reason)

    def _indifferent(self, saved: Saved) -> bool:
        """Return whether the recipe changes no tensor of the state's shapes, and no parameter's place."""
        origin = self.applied.origin
        parameters = [name for name, _ in self.model.named_parameters()]
        buffers = {name for name, _ in self.model.named_buffers()}
        places = [key for key in self.checkpoint if key not in buffers]
        if places != parameters or any(origin.get(name) != name for name in parameters):
            return False
        shapes = {
            tuple(value.shape)
            for slots in saved.state.values()
            for slot, value in slots.items()
            if hasattr(value, "shape") and slot != "step"
        }
        return shapes.isdisjoint(self.changed_shapes) and bool(shapes) and not saved.unread

    def _ungrown(self, saved: Saved) -> str:
        """Return where a tensor beside the state would have to change, such as master weights."""
        changed = self.changed_shapes - {()}
        inside = {} if saved.layout == "flat" else {**saved.node, **saved.shared}
        pending = [(str(key), part) for key, part in inside.items() if key not in ("state", "param_groups")]
        for path, part in pending:  # which grows as it is walked
            if isinstance(part, (dict, list, tuple)):
                items = part.items() if isinstance(part, dict) else enumerate(part)
                pending += [(f"{path}.{key}", inner) for key, inner in items]
            elif tuple(getattr(part, "shape", ())) in changed:
                return escape(path, 60)
        return ""

    # -- what happens to it --------------------------------------------------------------------------------

    def _resumption(self, where: str, saved: Saved, names: Naming, holder: Checkpoint) -> Resumption:
        """Return the state with which training resumes.

        Raises:
            LookupError: it has to be left out; the message says why.
            MisfitError: shapes don't match, or a state is refused.
        """
        self._hold_shapes(where, saved.named(names), self.checkpoint.meta())
        try:
            resumption = self._training(holder).resumed(saved, names, saved.named(names)).readable()
        except LookupError as reason:
            self._refuse(f"{where}: {reason}", [saved])
            raise
        self._hold_shapes(where, resumption.state, dict(self.model.named_parameters()))
        if resumption.left_out and not resumption.state:
            raise LookupError(_reasons(resumption.left_out))
        if part := self._ungrown(saved):
            raise LookupError(f"{part} has the shape of weights that changed, and what it is is not known")
        return resumption

    def _hold_shapes(self, where: str, state: State, parameters: Mapping[str, Any]) -> None:
        for found in faults.misshapen(state, parameters, rows=self._foreign):
            raise MisfitError(f"{where}: {escape(found.key)} has {found.checkpoint} for {found.model}")

    def _hold_unchanged(self, saved: Saved) -> None:
        """Check that a state without names is about unchanged parameters, or another model's.

        Raises:
            LookupError: it has to be left out; the message says why.
        """
        if saved.unread:
            raise LookupError(saved.unread)
        if not self._indifferent(saved) or any(map(unread_part, saved.state.values())):
            raise LookupError("which parameter each state belongs to can't be determined")

    @property
    def _foreign(self) -> bool:
        """Whether the new optimizer is known to be none of torch's."""
        if self.optimizer is None:
            return False
        try:
            return faults.is_foreign(made(self.optimizer, ghosts(dict(self.model.named_parameters())))[0])
        except OptimizerError:
            return False

    def _training(self, holder: Checkpoint | None = None, *, optimizer: bool = True) -> Training:
        source = self.checkpoint if holder is None else holder

        def read(value: Any) -> Any:
            return source.materialise(value) if isinstance(value, TensorSpec) else value

        factory = self.optimizer if optimizer else None
        grouping = None if factory is None else lambda named: groups_of(factory, named)
        old = self.checkpoint.meta()
        return Training(self.recipe, self.applied, old, self.model, self.source_model, grouping, read)


def _reasons(left_out: Mapping[str, str]) -> str:
    """Return which states are left out and why: ``fc.weight, left out (the meaning of ema is not known)``."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(escape(name))
    return "; ".join(f"{listed(names, _SHOWN)}, left out ({reason})" for reason, names in by_reason.items())
