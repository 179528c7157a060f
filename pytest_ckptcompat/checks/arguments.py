"""The table of a check's arguments. The marker, `check`, flags and TOML keys are made from it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.redaction import is_url

from . import argument_types as types
from .waivers import Waiver

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike

    from pytest_ckptcompat.checkpoint.contents import Contents
    from pytest_ckptcompat.recipes.recipe import Recipe

    from .argument_types import Direction


class Flag(NamedTuple):
    """How the ``ckptcompat`` command takes an argument.

    Attributes:
        metavar: the placeholder for the value in help.
        help: one line of help.
        repeat: whether the flag may be given several times. `read` then gets a list of texts.
        read: converts the text to the argument; raises `ValueError`.
    """

    metavar: str
    help: str
    repeat: bool = False
    read: Callable[[Any], Any] = lambda text: text


class Argument(NamedTuple):
    """An argument of a check.

    Attributes:
        check: ``(name, value)`` -> the value to keep; raises `ValueError`.
        help: one line of help.
        schema: JSON schema of the value in ``ckptcompat.toml``.
        flag: how the command takes the argument; None if it does not.
    """

    check: Callable[[str, Any], Any]
    help: str
    schema: Mapping[str, Any]
    flag: Flag | None = None


def _argument(*row: Any, default: Any = None, **more: Any) -> Any:
    return field(default=default, metadata={"argument": Argument(*row, **more)})


_NAMED = {"type": "string", "pattern": "^[^:]+:[^:]+$", "examples": ["onet:Net"]}
_TEXTS = {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_SHAPE = {
    "oneOf": [
        {"type": "string", "examples": ["2x3x48x48", "2x16:int64<32000", "2x16:bool"]},
        {"type": "array", "items": {"type": "integer", "minimum": 0}},
    ]
}
_SHAPES = [
    {"type": "string"},
    {"type": "array", "items": _SHAPE},
    {"type": "object", "additionalProperties": _SHAPE},
]


@dataclass(frozen=True)
class CheckArguments:
    """The arguments of the marker, `check` and ``[[check]]``; `of` makes and validates them."""

    model: Any = _argument(
        types.model,
        "a callable giving the model, an nn.Module, or 'package.module:name'",
        {**_NAMED, "description": "package.module:name of a callable that gives the model"},
    )
    ckpt: tuple[str, ...] = _argument(
        types.paths,
        "path(s) of this test; without it, every --ckpt in turn",
        {**_TEXTS, "description": "path or glob, relative to this file; absent: every --ckpt"},
        default=(),
    )
    recipe: Recipe | str | None = _argument(
        types.recipe,
        "Recipe, or the path of a recipe file: what turns an old checkpoint into one for today's model",
        {"description": "operators, or the path of a recipe file"},
        Flag("FILE.toml", "turns the checkpoint into one for the model", read=lambda path: _recipe(path)),
    )
    inputs: Any = _argument(
        types.inputs,
        "of the forward pass: a shape, a list or dict of shapes, a callable giving tensors, or 'auto'",
        {"description": "one shape, a list of shapes, a table name -> shape, or auto", "oneOf": _SHAPES},
        Flag("2x3x48x48", "a shape; repeatable; name=shape for keywords", True, lambda texts: _shapes(texts)),
    )
    source_model: Any = _argument(
        types.model,
        "the model that the checkpoint was made for: the recipe must keep its function",
        {**_NAMED, "description": "the model that the checkpoint was made for"},
        Flag("MODEL", "the model that the checkpoint was made for"),
    )
    state_dict_key: str | None = _argument(
        types.text,
        "dotted path to the state dict inside a wrapped checkpoint",
        {"type": "string", "description": "dotted path to the state dict inside a wrapped checkpoint"},
    )
    protect: tuple[str, ...] = _argument(
        types.patterns,
        "patterns of keys that no operator of the recipe may touch",
        {**_TEXTS, "description": "patterns of keys that a recipe may not touch"},
        Flag("PATTERN", "keys that no recipe may touch", True),
        default=(),
    )
    allow: tuple[Waiver, ...] = _argument(
        types.waivers,
        "waivers: allow(rule, key, reason=..., until=...)",
        {"description": "waivers"},
        Flag(
            "RULE:KEY:REASON",
            "accept the findings of a rule on a key pattern; repeatable",
            True,
            lambda texts: [Waiver.parse(text) for text in texts],
        ),
        default=(),
    )
    device: str | None = _argument(
        types.device,
        "where the forward pass runs: auto, cpu, cuda, cuda:N, rehearse or none",
        {"type": "string", "pattern": "^(auto|cpu|cuda(:[0-9]+)?|rehearse|none)$"},
        Flag("D", "auto, cpu, cuda, cuda:N, rehearse or none"),
    )
    optimizer: Any = _argument(
        types.optimizer,
        "(parameters) -> Optimizer, or its name: its state is grown, loaded and stepped",
        {**_NAMED, "description": "package.module:name of a callable (parameters) -> Optimizer"},
        Flag("NAME", "grow, check and step its state, as torch.optim:Adam does"),
    )
    optimizer_state: str | None = _argument(
        types.path,
        "path of the optimizer's state, where it is not in the checkpoint or beside it",
        {"type": "string", "description": "path of the optimizer's state, where it has a file of its own"},
        Flag("PATH", "the optimizer's state, where it has a file of its own"),
    )
    direction: Direction = _argument(
        types.direction,
        "backward: today's model reads the checkpoint; forward: the released model reads today's; full: both",
        {
            "enum": ["backward", "forward", "full"],
            "description": "backward: today's model reads the checkpoint; "
            "forward: the released model reads today's",
        },
        Flag("D", "backward (the default), forward or full"),
        default="backward",
    )
    model_args: Any = _argument(
        types.model_args,
        "keyword arguments for model: a dict, or 'ckpt:PATH', a dict in the checkpoint or lock",
        {
            "oneOf": [{"type": "object"}, {"type": "string", "pattern": "^ckpt:."}],
            "description": "keyword arguments for model, or ckpt:PATH, a dict in the checkpoint or lock",
        },
        Flag("ckpt:PATH", "keyword arguments for MODEL, a dict in the checkpoint or lock"),
    )
    method: str = _argument(
        types.method,
        "the method that the forward pass calls",
        {"type": "string", "description": "the method that the forward pass calls"},
        Flag("NAME", "the method that the forward pass calls, forward if not given"),
        default="forward",
    )
    max_memory: int | None = _argument(
        types.memory,
        "'24GB' (10**9 each; GiB is 2**30): the most that the forward pass on CUDA may need",
        {
            "type": "string",
            "pattern": "^[0-9]+(\\.[0-9]+)?\\s*([kMGT]i?)?B$",
            "description": "the most that the forward pass on CUDA may need: 24GB, 80GiB",
        },
        Flag("24GB", "fail where the forward pass on CUDA needs more"),
    )
    loader: Callable[..., Any] | str | None = _argument(
        types.loader,
        "your own loading function, (path) or (model, path): it is run, and the model's values are traced",
        {**_NAMED, "description": "package.module:name of your own loading function, which is tested"},
        Flag("NAME", "test this loading function, (path) -> model, or (model, path) with MODEL"),
    )

    @classmethod
    def of(cls, **arguments: Any) -> CheckArguments:
        """Validate the arguments and return them.

        Raises:
            ValueError: an argument is unknown, missing or of a wrong type. The message contains its name.
        """
        for name in arguments:
            if name not in ARGUMENTS:
                near = difflib.get_close_matches(name, ARGUMENTS, 1)
                hint = f"did you mean {near[0]}=?" if near else f"known are {', '.join(ARGUMENTS)}"
                raise ValueError(f"unknown argument {name}=: {hint}")
        if arguments.get("model") is None and arguments.get("loader") is None:
            raise ValueError(
                "model= is missing: a callable giving the model, or 'package.module:name' "
                "(or loader=, your own loading function)"
            )
        given = {name: value for name, value in arguments.items() if value is not None}
        made = cls(**{name: ARGUMENTS[name].check(name, value) for name, value in given.items()})
        if made.model_args and hasattr(made.model, "load_state_dict") and not isinstance(made.model, type):
            raise ValueError("model_args= is for a callable model, and this model is built already")
        if made.loader is not None:
            made._refuse_beside_loader()
        return made

    def arguments_of_model(self, contents: Contents | None) -> dict[str, Any]:
        """Return ``model_args`` as keyword arguments, read from the checkpoint if need be; a commit has none.

        Raises:
            CheckpointError: the checkpoint does not hold them.
        """
        if not isinstance(self.model_args, str):
            return self.model_args or {}
        if contents is None:
            raise CheckpointError(
                f"model_args={self.model_args!r} reads a checkpoint, and a commit has none: give a dict"
            )
        from pytest_ckptcompat.checkpoint.plain_metadata import arguments_at

        return arguments_at(contents, self.model_args.removeprefix(types.FROM_CHECKPOINT))

    def _refuse_beside_loader(self) -> None:
        if self.direction != "backward":
            raise ValueError(
                f"direction={self.direction!r} is for a model's own strict load, not for loader="
            )
        for name in ("optimizer", "source_model"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}= can't be checked beside loader=: make it a check of its own")
        if self.model is None and self.model_args:
            raise ValueError("model_args= are the arguments of model=, which is not given")
        for path in self.ckpt:
            if not {"*", "?"}.isdisjoint(path) or is_url(path):
                raise ValueError(
                    f"ckpt={path!r}: a loader gets one file or folder; name each in a check of its own"
                )


ARGUMENTS: dict[str, Argument] = {each.name: each.metadata["argument"] for each in fields(CheckArguments)}
"""The table: name -> argument."""


class Arguments(TypedDict, total=False):
    """The arguments other than ``model`` and ``ckpt``, as callers write them."""

    recipe: Recipe | str | PathLike[str] | None
    inputs: Any
    source_model: Callable[..., Any] | str | None
    state_dict_key: str | None
    protect: str | Sequence[str]
    allow: Waiver | Sequence[Waiver]
    device: str | None
    optimizer: Callable[..., Any] | str | None
    optimizer_state: str | PathLike[str] | None
    direction: Direction
    model_args: dict[str, Any] | str | None
    method: str
    max_memory: str | None
    loader: Callable[..., Any] | str | None


def marker_help(name: str) -> str:
    """Return the marker's line for ``pytest --markers``, with the help of each argument."""
    given = (f"{each.name}={each.default!r}" for each in fields(CheckArguments)[2:])
    taken = ["model=None", "ckpt=None", *given]
    line = f"{name}(*, {', '.join(taken)}): the checkpoint must load into the model"
    return "\n  ".join([line, *(f"{each}: {row.help}" for each, row in ARGUMENTS.items())])


def _recipe(path: str) -> Recipe:
    from pytest_ckptcompat.recipes.recipe import Recipe

    return Recipe.load(path)


def _shapes(texts: Sequence[str]) -> object:
    """Return shapes (``2x3x48x48``) as they are, and named ones (``name=2x16:int64<32000``) as a dict."""
    pairs = [text.partition("=") for text in texts]
    named = {name: shape for name, equals, shape in pairs if equals}
    if not named:
        return texts[0] if len(texts) == 1 else list(texts)
    if len(named) != len(texts):
        raise ValueError("--inputs: name all inputs (--inputs ids=2x16:int64<100) or none of them")
    return named
