"""What an operator's own proof says."""

from __future__ import annotations

from typing import Any


def statuses(operator: Any, before: Any, after: Any, target: Any) -> list[str]:
    """The statuses of its promises, in their order."""
    return [promise.status for promise in operator.prove(before, after, target)]
