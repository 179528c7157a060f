"""Recurrent layers: their rows are gates, one block of units each."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import nn

from .changes import Explained

if TYPE_CHECKING:
    from collections.abc import Collection

    from .changes import Changes, Sizes

_RECURRENT = re.compile(r"((?:.*\.)?)(weight|bias)_(ih|hh|hr)((?:_l[0-9]+)?(?:_reverse)?)", re.DOTALL)


def gates(changes: Changes, left: Collection[str]) -> Explained:
    """Set apart what recurrent layers have: rows of one gate are none of another's."""
    recurrent = {
        path for path, module in changes.modules.items() if isinstance(module, (nn.RNNBase, nn.RNNCellBase))
    }
    return Explained(
        barred={key for key in left if _RECURRENT.fullmatch(key) or key.rpartition(".")[0] in recurrent}
    )


def hidden_sizes(key: str, shape: Sizes) -> tuple[int, ...]:
    """How many units a recurrent layer gives, in one direction and in both, as one of its weights tells."""
    found = _RECURRENT.fullmatch(key)
    return (shape[-1], 2 * shape[-1]) if found and found[3] in ("hh", "hr") else ()
