"""The pytest plugin: its hooks and fixtures, collected from the modules of this package."""

from .collection import pytest_collect_file, pytest_generate_tests, pytest_pycollect_makeitem
from .fixtures import ckpt, ckpt_check, ckpt_model, ckpt_path, ckpt_report
from .options import (
    pytest_addhooks,
    pytest_addoption,
    pytest_configure,
    pytest_configure_node,
    pytest_sessionstart,
    pytest_unconfigure,
)
from .running import (
    pytest_runtest_call,
    pytest_runtest_makereport,
    pytest_runtest_setup,
    pytest_runtest_teardown,
)
