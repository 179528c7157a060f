"""Find the first commit that differs, in few tries. Commits that can't be tested are skipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .reference import Commit, git

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Answer = Literal["fits", "differs", "skipped"]


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search.

    Attributes:
        first: index of the first commit that differs. None if no commit differs, or no earlier one fits.
        between: indices of skipped commits just before `first`. Each of them may be the first too.
        tried: the number of commits that were tested.
        skipped: how many of them could not be tested.
        fits: whether the newest commit fits, if `first` is None.
    """

    first: int | None
    between: tuple[int, ...] = ()
    tried: int = 0
    skipped: int = 0
    fits: bool = False


def line_of(last: Commit) -> list[str]:
    """Return the commits from `last` back to the root, following first parents only."""
    listed = git(last.repository, "rev-list", "--first-parent", last.sha).stdout
    return listed.decode("ascii").split()


def search(count: int, ask: Callable[[int], Answer], good: int | None = None) -> Found:
    """Search a line of commits. Index 0 is the newest.

    Args:
        count: the number of commits.
        ask: tests the commit with an index; called at most once for each.
        good: index of a commit that fits. None: look for one 1, 2, 4, ... commits back.
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
        middle = min(open_, key=lambda index: abs(2 * index - centre))
        answer = asked(middle)
        if answer == "fits":
            fits = middle
        elif answer == "differs":
            differs = middle
    return found(differs, range(differs + 1, fits))


def _back(count: int) -> list[int]:
    """Return 1, 2, 4, ... and the index of the root."""
    steps = [1 << power for power in range(count.bit_length()) if 1 << power < count - 1]
    return [*steps, count - 1] if count > 1 else []
