"""The example trains its checkpoint when it is first run; your repository has one."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def trained():
    from digits import CHECKPOINT, train

    if not CHECKPOINT.exists():
        train()
