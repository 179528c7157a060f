"""The errors that callers may want to catch."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any


class CheckpointError(ValueError):
    """Raised if a checkpoint can't be read. The message says what is wrong, where, and what to do.

    Text from the file is already escaped, so the message is safe to print.
    """


class AmbiguousError(CheckpointError):
    """Raised if a checkpoint holds several possible state dicts. The message lists them.

    Attributes:
        contents: the header of the checkpoint, for callers that can choose with the help of a model.
    """

    contents: Any = None


class RecipeError(ValueError):
    """Raised if a recipe can't be built or doesn't apply.

    Attributes:
        rule: the id of the broken rule (``recipe-unused-op``, ``recipe-error``, ...).
        key: the key or pattern concerned, or ``""``.
    """

    def __init__(self, message: str, *, rule: str = "recipe-error", key: str = "") -> None:
        super().__init__(message)
        self.rule = rule
        self.key = key

    def inside(self, where: str) -> RecipeError:
        """Return the same error with the place of the fault in front of its text."""
        return RecipeError(f"{where}: {self}", rule=self.rule, key=self.key)


class MisfitError(ValueError):
    """Raised if a checkpoint does not fit the model, or an optimizer state can't be matched to it.

    The message says what is wrong. For a checkpoint, it lists the keys.
    """


class ModelError(Exception):
    """Raised if the model can't be imported or built. The message says what was tried and what failed."""


def raised(error: BaseException) -> str:
    """Describe an exception in one line: ``TypeError: missing 1 required argument (onet.py:12)``."""
    from .redaction import redact

    text = redact(" ".join(str(error).split())) or "no message"
    if isinstance(error, SystemExit):
        text = f"the code called sys.exit({error.code!r})"
    return f"{type(error).__name__}: {text}{_place(error)}"


def _place(error: BaseException) -> str:
    """Return the innermost line that is not in torch, this package or importlib: `` (onet.py:12)``."""
    if isinstance(error, SyntaxError) and error.filename:
        return ""  # its text names file and line
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
