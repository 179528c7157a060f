"""What several test files share: pytester projects with a small model and its checkpoint."""

import os
from importlib import import_module, invalidate_caches
from pkgutil import walk_packages

import pytest
from hypothesis import settings

# Small tensors gain nothing by threads, which several workers, and the processes they start, fight over.
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

import pytest_ckptcompat

pytest_plugins = ["pytester"]

# A gate that is red by chance is worth nothing: CI tries the same examples each time, people new ones.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")

NETS = """
    import torch
    from torch import nn

    class V1(nn.Module):
        def __init__(self, outputs=4):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
            self.head = nn.Linear(8, outputs)

        def forward(self, x):
            return self.head(self.body(x))

    class V2(V1):
        def __init__(self):
            super().__init__(outputs=10)

    class Forgetful(V1):
        def forward(self, x):
            return super().forward(x) + torch.arange(4)

    class Broken(V1):
        def __init__(self):
            raise TypeError("the config has no 'width'")

    class Quits(V1):
        def __init__(self):
            import sys
            sys.exit("no GPU, bye")
"""


@pytest.fixture(scope="session")
def warm():
    """Have torch import whatever it imports on first use.

    pytester forgets the modules that a run in this process imported, and torch can't be imported twice.
    """
    for module in walk_packages(pytest_ckptcompat.__path__, "pytest_ckptcompat."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    for name in pytest_ckptcompat.__all__:
        getattr(pytest_ckptcompat, name)
    from pytest_ckptcompat.forward.inputs import Inputs
    from pytest_ckptcompat.forward.rehearsal import rehearse

    rehearse(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)), Inputs.parse((2, 2)))


@pytest.fixture
def pytester(warm, pytester, monkeypatch):
    """pytest's own, with 80 columns, outside CI, and without plugins that are slow to start."""
    for name in ("CI", "BUILD_NUMBER", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest -p no:cacheprovider")
    return pytester


@pytest.fixture
def project(pytester):
    """A repository with models in ``nets.py`` and a checkpoint of V1 in ``v1.pth``."""
    pytester.makepyfile(nets=NETS)
    pytester.syspathinsert()
    invalidate_caches()
    torch.manual_seed(0)
    torch.save(import_module("nets").V1().state_dict(), pytester.path / "v1.pth")
    return pytester


@pytest.fixture
def memory():
    """fsspec's file system in memory, as a stand-in for a bucket."""
    system = pytest.importorskip("fsspec").filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]
