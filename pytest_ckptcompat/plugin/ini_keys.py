"""Values that don't come from the command line: ini keys and an environment variable."""

from __future__ import annotations

from typing import Any

import pytest

CKPT_VARIABLE = "CKPTCOMPAT_CKPT"
"""The environment variable with the paths of checkpoints, one on each line."""


def ini(config: pytest.Config, key: str) -> Any:
    """Return the value of an ini key.

    Raises:
        pytest.UsageError: the value does not have the key's type.
    """
    try:
        return config.getini(key)
    except (ValueError, TypeError, pytest.UsageError) as error:
        raise pytest.UsageError(f"the ini key {key}: {error}") from None
