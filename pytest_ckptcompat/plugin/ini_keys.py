"""Values that come from elsewhere than the command line: ini keys, and an environment variable."""

from __future__ import annotations

from typing import Any

import pytest

CKPT_VARIABLE = "CKPTCOMPAT_CKPT"
"""The environment variable that names checkpoints, a path a line."""


def ini(config: pytest.Config, key: str) -> Any:
    """The value of an ini key.

    Raises:
        pytest.UsageError: it is not of the key's type.
    """
    try:
        return config.getini(key)
    except (ValueError, TypeError, pytest.UsageError) as error:
        raise pytest.UsageError(f"the ini key {key}: {error}") from None
