"""What an operator's own proof says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.claim import Claim

if TYPE_CHECKING:
    from pytest_ckptcompat.core.findings import Promise


def proved(operator: Any, before: Any, after: Any, target: Any) -> list[Promise]:
    """Its promises, in their order; a proof that raises is raised."""
    verdicts = [claim.proof() for claim in operator.prove(before, after, target) if isinstance(claim, Claim)]
    return [verdict[0] for verdict in verdicts if verdict is not None]


def statuses(operator: Any, before: Any, after: Any, target: Any) -> list[str]:
    """The statuses of its promises, in their order."""
    return [promise.status for promise in proved(operator, before, after, target)]
