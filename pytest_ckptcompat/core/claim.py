"""Claims: what is promised, and what proves it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from pytest_ckptcompat.core.errors import raised
from pytest_ckptcompat.core.findings import Finding, Promise, finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

UNASKED = "no inputs and no recipe were given"
"""Why no values were read when no stage needs them."""

NEEDED = "needs values"
"""Why a claim is not proved when only shapes are known."""

Verdict = tuple[Promise, list[Finding]]


@dataclass(frozen=True, slots=True)
class Claim:
    """A promise and the function that proves it, not called yet.

    Attributes:
        name: its name in the report.
        proof: called if there are values. Returns the verdict, or None if there is nothing to report.
        why: the reason given if there are no values.
    """

    name: str
    proof: Callable[[], Verdict | None]
    why: str = NEEDED

    @staticmethod
    def of(
        name: str,
        faults: Callable[[], Iterable[str]],
        kept: str | Callable[[], str] = "",
        rule: str = "recipe-broken-promise",
    ) -> Claim:
        """Return a claim that is broken by the first fault found.

        Args:
            name: its name in the report.
            faults: yields faults as texts.
            kept: what the report says if there is no fault. A function is called after the search.
            rule: the rule of the finding if there is a fault.
        """

        def proof() -> Verdict:
            first = list(islice(faults(), 1))
            if first:
                return Promise(name, "broken", first[0]), [finding(rule, message=f"{name}: {first[0]}")]
            return Promise(name, "kept", kept if isinstance(kept, str) else kept()), []

        return Claim(name, proof)

    def proved(self) -> Verdict | None:
        """Return the verdict of the proof. A proof that raises breaks the promise."""
        try:
            return self.proof()
        except Exception as error:
            return failed(self.name, error)

    def unproved(self) -> Promise:
        """Return the promise as unchecked."""
        return Promise(self.name, "unchecked", self.why)


def failed(name: str, error: BaseException) -> Verdict:
    """Return the verdict on a claim whose proof raised."""
    why = f"its proof raised {raised(error)}"
    return Promise(name, "broken", why), [finding("recipe-unproved", message=f"{name}: {why}")]
