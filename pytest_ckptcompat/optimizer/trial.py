"""Make the user's optimizer on parameters without memory, and take one step with it on copies."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from pytest_ckptcompat.core.errors import raised
from pytest_ckptcompat.tensors.finite import count_not_finite
from pytest_ckptcompat.tensors.seeds import seeded

from .state import Naming, State, numbered

Factory = Callable[[Any], torch.optim.Optimizer]
Parameters = Mapping[str, nn.Parameter]

_LACKING = {
    r"process group|environment variable (RANK|WORLD_SIZE|MASTER_\w+)": (
        "it needs a process group, as under torchrun"
    ),
    r"not compiled with CUDA|No NVIDIA|CUDA driver|no CUDA-capable": "it needs a GPU",
}
"""What a check can't give a factory."""


class OptimizerError(Exception):
    """Raised if the optimizer can't be made, refuses the state, or fails in its step."""


class Unavailable(OptimizerError):  # noqa: N818  # the optimizer itself is fine
    """Raised if a check can't provide what the optimizer needs; the message says what."""


def ghosts(parameters: Mapping[str, torch.Tensor]) -> dict[str, nn.Parameter]:
    """Return parameters of the same shapes and dtypes without memory: one element each, expanded.

    torch's optimizers inspect shapes, dtypes and devices when they are made, but never values. Some of them
    (``fused=True``) refuse the meta device.
    """
    return {
        name: nn.Parameter(
            torch.zeros((), dtype=each.dtype, device="cpu").expand(each.shape), each.requires_grad
        )
        for name, each in parameters.items()
    }


def made(factory: Factory, parameters: Parameters) -> tuple[torch.optim.Optimizer, Naming]:
    """Make the optimizer; return it with the names of each group's parameters, in its order.

    The factory is called with the named parameters or, if it does not take them, with the parameters.

    Raises:
        OptimizerError: it raised in both cases, or did not return an optimizer of these parameters.
    """
    optimizer = _called(factory, parameters)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise OptimizerError(f"optimizer= gave {type(optimizer).__name__}, not a torch.optim.Optimizer")
    names = {id(parameter): name for name, parameter in parameters.items()}
    groups = [[names.get(id(each), "") for each in group["params"]] for group in optimizer.param_groups]
    if not all(name for group in groups for name in group):
        raise OptimizerError("optimizer= gave an optimizer of tensors that are not the model's parameters")
    return optimizer, groups


def groups_of(factory: Factory, parameters: Parameters) -> Naming | None:
    """Return the names of each group's parameters, or None if the factory refuses these parameters."""
    try:
        return made(factory, ghosts(parameters))[1]
    except OptimizerError:
        return None


def _called(factory: Factory, parameters: Parameters) -> Any:
    with seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return factory(list(parameters.items()))
        except (Exception, SystemExit) as error:
            named = error
        try:
            return factory(list(parameters.values()))
        except (Exception, SystemExit) as error:
            plain = error
    for pattern, reason in _LACKING.items():
        if re.search(pattern, f"{named} {plain}", re.IGNORECASE):
            raise Unavailable(f"{reason}: {raised(plain)}") from plain
    # The form that the factory does not take always fails, so its error says nothing.
    takes_no_names = isinstance(named, (AttributeError, TypeError)) and "tuple" in str(named)
    cause = plain if takes_no_names else named
    raise OptimizerError(f"optimizer= raised {raised(cause)}") from cause


def step(
    factory: Factory,
    parameters: Parameters,
    state: State,
    options: Sequence[Mapping[str, Any]],
    shared: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Load the state into an optimizer of `parameters` and take one step, which changes both.

    The gradients are random: only shapes, dtypes and values of the state are tested. Its shapes must be
    checked before: torch checks none, and a fused step on a wrong shape corrupts memory.

    `options` are the saved ones of each group (if empty, the optimizer's own are kept); `shared` is what lies
    beside the state of the parameters.

    Raises:
        Unavailable: the optimizer can't step in a check, whatever its state is.
        OptimizerError: loading or stepping raised, or the step gave values that are not finite.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters.values():
        if parameter.requires_grad:
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * 1e-2
            parameter.grad = drawn.to(parameter.device, parameter.dtype)
    optimizer, groups = made(factory, parameters)
    if "param_groups" not in optimizer.state_dict():
        raise Unavailable(f"{type(optimizer).__name__} has its own form of state dict")
    own = optimizer.state_dict()["param_groups"]
    if len(options) == len(own):
        own = [{**each, **saved} for each, saved in zip(own, options, strict=True)]
    content = numbered(groups, own, state)
    content["state"] |= shared
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            doing = "load_state_dict"
            optimizer.load_state_dict(content)
            doing = "the step"
            _stepped(optimizer)
        except (Exception, SystemExit) as error:
            if any(group.get("capturable") for group in optimizer.param_groups):
                raise Unavailable("it was saved with capturable=True, which steps only on a GPU") from error
            _steps_anew(factory, parameters)
            raise OptimizerError(f"{doing} raised {raised(error)}") from error
    for name, parameter in parameters.items():
        if count_not_finite(parameter):
            raise OptimizerError(f"the step leaves {name} not finite")


def _stepped(optimizer: torch.optim.Optimizer) -> None:
    if callable(train := getattr(optimizer, "train", None)):
        train()  # schedule-free optimizers step only in train mode
    optimizer.step()


def _steps_anew(factory: Factory, parameters: Parameters) -> None:
    """Check that the optimizer steps without the state. If it can't, the state is not what is wrong.

    Raises:
        Unavailable: it can't: it needs a closure, sparse gradients, second derivatives, a process group.
    """
    optimizer, _ = made(factory, parameters)
    try:
        _stepped(optimizer)
    except (Exception, SystemExit) as error:
        kind = type(optimizer).__name__
        raise Unavailable(
            f"{kind} can't step in a check, even without the saved state: {raised(error)}"
        ) from error
