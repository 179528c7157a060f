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
"""Why no values were read, where nothing was asked of them."""

NEEDED = "needs values"
"""Why a claim is not proved where there are shapes alone."""

Verdict = tuple[Promise, list[Finding]]


@dataclass(frozen=True, slots=True)
class Claim:
    """One promise, with its proof, which nobody has asked for yet.

    Attributes:
        name: as it stands in the report.
        proof: called where there are values: what was found, or None where there is nothing to say.
        why: it is not proved where there are none.
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
        """A claim that the first fault breaks.

        Args:
            name: as it stands in the report.
            faults: looks for faults, one after the other; each is a text.
            kept: what the report says if there is none; called afterwards if it is a function.
            rule: of the finding if there is one.
        """

        def proof() -> Verdict:
            first = list(islice(faults(), 1))
            if first:
                return Promise(name, "broken", first[0]), [finding(rule, message=f"{name}: {first[0]}")]
            return Promise(name, "kept", kept if isinstance(kept, str) else kept()), []

        return Claim(name, proof)

    def proved(self) -> Verdict | None:
        """The verdict of the proof; a proof that raises is a failure of its own."""
        try:
            return self.proof()
        except Exception as error:
            return failed(self.name, error)

    def unproved(self) -> Promise:
        """The claim as the report lists it where it is not proved."""
        return Promise(self.name, "unchecked", self.why)


def failed(name: str, error: BaseException) -> Verdict:
    """The verdict on a claim whose proof raised."""
    why = f"its proof raised {raised(error)}"
    return Promise(name, "broken", why), [finding("recipe-unproved", message=f"{name}: {why}")]
