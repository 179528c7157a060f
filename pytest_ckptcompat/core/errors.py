"""The errors that callers may want to catch."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any


class CheckpointError(ValueError):
    """A checkpoint that can't be read: what is wrong, where, and what to do, in one or two lines.

    Text that comes from the file is escaped already, so the message is safe to print.
    """


class AmbiguousError(CheckpointError):
    """A checkpoint that holds several state dicts that may be meant; the text lists them.

    Attributes:
        contents: its header, for those who know a model to choose by.
    """

    contents: Any = None


class RecipeError(ValueError):
    """A recipe that can't be built or doesn't apply.

    Attributes:
        rule: the id of the rule that was broken (``recipe-unused-op``, ``recipe-error``, ...).
        key: the key or pattern concerned, or ``""``.
    """

    def __init__(self, message: str, *, rule: str = "recipe-error", key: str = "") -> None:
        super().__init__(message)
        self.rule = rule
        self.key = key

    def inside(self, where: str) -> RecipeError:
        """The same error with the place where it was found in front of its text."""
        return RecipeError(f"{where}: {self}", rule=self.rule, key=self.key)


class MisfitError(ValueError):
    """A checkpoint that does not fit the model, or an optimizer's state that can't be matched to it.

    The message says what is wrong; of a checkpoint, key by key.
    """


class ModelError(Exception):
    """The model could not be imported or built; the message says what was tried and what it raised."""


def raised(error: BaseException) -> str:
    """``TypeError: missing 1 required argument (onet.py:12)``: an exception in one line, with its place."""
    from .redaction import redact

    text = redact(" ".join(str(error).split())) or "no message"
    if isinstance(error, SystemExit):
        text = f"the code called sys.exit({error.code!r})"
    return f"{type(error).__name__}: {text}{_place(error)}"


def _place(error: BaseException) -> str:
    """Where it happened: the innermost line that is none of torch, this package, or Python's importing."""
    if isinstance(error, SyntaxError) and error.filename:
        return ""  # its text tells file and line
    torch = sys.modules.get("torch")
    files = (importlib.__file__, *([torch.__file__] if torch else []))
    skipped = (*(str(Path(each).parent) for each in files if each), str(Path(__file__).parents[1]), "<")
    place, trace = "", error.__traceback__
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if not filename.startswith(skipped):
            place = f" ({Path(filename).name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return place
