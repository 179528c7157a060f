"""The first commit at which something is no longer so, in few tries; commits that can't tell are skipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .reference import Commit, git

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Answer = Literal["fits", "differs", "skipped"]


@dataclass(frozen=True, slots=True)
class Found:
    """How a search ended.

    Attributes:
        first: index of the first commit that differs; None where there is none, or none that fits before it.
        between: indices of skipped commits just before `first`, each of which may be the first as well.
        tried: how many commits were asked.
        skipped: how many of them could not tell.
        fits: where `first` is None: whether the last commit fits.
    """

    first: int | None
    between: tuple[int, ...] = ()
    tried: int = 0
    skipped: int = 0
    fits: bool = False


def line_of(last: Commit) -> list[str]:
    """The commits from `last` back to the root, first parents alone."""
    listed = git(last.repository, "rev-list", "--first-parent", last.sha).stdout
    return listed.decode("ascii").split()


def search(count: int, ask: Callable[[int], Answer], good: int | None = None) -> Found:
    """Search a line of commits, of which 0 is the newest.

    Args:
        count: how many there are.
        ask: index -> whether it fits; called once for each.
        good: index of one that fits; None: it is looked for 1, 2, 4 ... commits back.
    """
    answers: dict[int, Answer] = {}

    def asked(index: int) -> Answer:
        if index not in answers:
            answers[index] = ask(index)
        return answers[index]

    def found(first: int | None, between: Sequence[int] = (), *, fits: bool = False) -> Found:
        skipped = sum(answer == "skipped" for answer in answers.values())
        return Found(first, tuple(between), len(answers), skipped, fits)

    if asked(0) != "differs":
        return found(None, fits=answers[0] == "fits")
    fits = next((index for index in _back(count) if asked(index) == "fits"), None) if good is None else good
    if fits is None or asked(fits) != "fits":
        return found(None)
    differs = max(index for index in range(fits) if answers.get(index) == "differs")
    while open_ := [index for index in range(differs + 1, fits) if answers.get(index) != "skipped"]:
        centre = differs + fits
        middle = min(open_, key=lambda index: abs(2 * index - centre))  # it is called at once
        answer = asked(middle)
        if answer == "fits":
            fits = middle
        elif answer == "differs":
            differs = middle
    return found(differs, range(differs + 1, fits))


def _back(count: int) -> list[int]:
    """1, 2, 4 ... and the root."""
    steps = [1 << power for power in range(count.bit_length()) if 1 << power < count - 1]
    return [*steps, count - 1] if count > 1 else []
