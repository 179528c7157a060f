"""``--ckpt git:REF`` under pytest, in repositories as people have them."""

from __future__ import annotations

import sys

import pytest
from repositories import Repository

NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self, outputs=4):
        super().__init__()
        self.fc = nn.Linear(3, outputs)
    def forward(self, x):
        return self.fc(x).relu()
"""
TEST = """
import pytest
from {module} import {name}
@pytest.mark.ckpt_compat(model={name}{more})
def test_gate(): ...
"""
CHANGE = ("outputs=4", "outputs=14")


@pytest.fixture
def repository(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest")  # the cache keeps what a commit answers
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    made = Repository(pytester.path)
    made.put(".gitignore", "__pycache__/\n.pytest_cache/\n")
    return made


def ran(pytester, *arguments):
    return pytester.runpytest_inprocess(*arguments or ("--ckpt=git:HEAD", "--ckpt-device=none"))


def red_and_green(pytester, repository, path, *arguments, change=CHANGE):
    """Green as it is, red with the table once the head has changed."""
    repository.commit()
    ran(pytester, *arguments).assert_outcomes(passed=1)
    text = (repository.folder / path).read_text()
    assert change[0] in text
    (repository.folder / path).write_text(text.replace(*change))
    done = ran(pytester, *arguments)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*shape-mismatch*fc.weight*(4, 3) f32*(14, 3) f32*"])


def test_flat(pytester, repository):
    repository.put("net.py", NET)
    repository.put("test_net.py", TEST.format(module="net", name="Net", more=""))
    red_and_green(pytester, repository, "net.py")


def test_sources_and_a_namespace_package(pytester, repository):
    repository.put("src/org/models/net.py", NET)
    repository.put("pytest.ini", "[pytest]\npythonpath = src\n")
    repository.put("tests/test_net.py", TEST.format(module="org.models.net", name="Net", more=""))
    red_and_green(pytester, repository, "src/org/models/net.py")


def test_hubconf_and_toml(pytester, repository):
    repository.put("hubconf.py", f"dependencies = ['torch']\n{NET}\ndef small():\n    return Net()\n")
    repository.put("ckptcompat.toml", '[[check]]\nname = "hub"\nmodel = "hubconf:small"\n')
    red_and_green(pytester, repository, "hubconf.py")


def test_a_factory_with_arguments(pytester, repository):
    repository.put("factory.py", f"{NET}\ndef build(config):\n    return Net(**config['head'])\n")
    more = ", model_args={'config': {'head': {'outputs': 4}}}"
    repository.put("test_net.py", TEST.format(module="factory", name="build", more=more))
    repository.commit()
    ran(pytester).assert_outcomes(passed=1)
    repository.put("test_net.py", TEST.format(module="factory", name="build", more=more.replace("4", "14")))
    ran(pytester).assert_outcomes(passed=1)  # the arguments are today's on both sides


def test_a_conftest_that_changes_the_path(pytester, repository):
    repository.put("lib/deep/net.py", NET)
    repository.put(
        "conftest.py",
        "import pathlib, sys\nsys.path.insert(0, str(pathlib.Path(__file__).parent / 'lib/deep'))\n",
    )
    repository.put("test_net.py", TEST.format(module="net", name="Net", more=""))
    red_and_green(pytester, repository, "lib/deep/net.py")


def test_side_effects_of_an_import(pytester, repository):
    noise = (
        "import os, sys, pathlib, warnings, atexit\nprint('noise'); warnings.warn('noise')\n"
        "pathlib.Path(__file__).with_name('made.txt').write_text('x'); open('here.log', 'w').write('x')\n"
        "sys.path.append('/nowhere'); atexit.register(lambda: os._exit(7))\n"
    )
    repository.put("net.py", NET)
    repository.put("test_net.py", TEST.format(module="net", name="Net", more=""))
    repository.put("net.py", noise + NET)
    repository.commit()
    repository.put("net.py", NET)
    ran(pytester).assert_outcomes(passed=1)
    assert not (repository.folder / "made.txt").exists()
    assert not (repository.folder / "here.log").exists()


def test_a_slow_import_has_its_time(pytester, repository):
    repository.put("net.py", "import time; time.sleep(30)\n" + NET)
    repository.put("test_net.py", TEST.format(module="net", name="Net", more=""))
    repository.commit()
    repository.put("net.py", NET)
    done = ran(pytester, "--ckpt=git:HEAD", "-o", "ckpt_git_timeout=2", "--ckpt-device=none")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*was not checked*did not finish within 2 s*"])
    assert ran(pytester, "--ckpt=git:HEAD", "-o", "ckpt_git_timeout=soon").ret == 4


def test_a_compiled_extension_that_the_commit_lacks(pytester, repository):
    repository.put(".gitignore", "*.so\n_kernels.py\n__pycache__/\n.pytest_cache/\n")
    repository.put("net.py", "import _kernels\n" + NET)
    repository.put("test_net.py", TEST.format(module="net", name="Net", more=""))
    repository.commit()
    repository.put("_kernels.py", "")
    done = ran(pytester)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        ["*No module named '_kernels' (net.py:1). Today's _kernels.py is not in that commit*"]
    )


def test_a_model_that_is_new(pytester, repository):
    repository.commit()
    repository.put("net.py", NET)
    repository.put("test_net.py", TEST.format(module="net", name="Net", more=""))
    done = ran(pytester)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*: there is no module 'net'. Today's net.py is not in that commit*"])


def test_lightning_like(pytester, repository):
    text = NET.replace("class Net", "class LitNet").replace(
        "    def forward",
        "    @property\n    def example_input_array(self):\n        import torch\n        return torch.zeros(2, 3)\n    def forward",
    )
    repository.put("net.py", text)
    repository.put("test_net.py", TEST.format(module="net", name="LitNet", more=", inputs='auto'"))
    repository.commit()
    arguments = ("--ckpt=git:HEAD", "--ckpt-device=cpu")
    ran(pytester, *arguments).assert_outcomes(passed=1)
    repository.put("net.py", text.replace("relu()", "tanh()"))
    done = ran(pytester, *arguments)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*function-changed*"])


@pytest.mark.parametrize(
    ("ref", "told"),
    [("nonsense", "git finds no commit 'nonsense'"), ("", "names no commit: write git:REF")],
)
def test_an_option_that_names_no_commit_ends_the_run(pytester, repository, ref, told):
    repository.put("net.py", NET)
    repository.put("test_net.py", TEST.format(module="net", name="Net", more=""))
    repository.commit()
    done = ran(pytester, f"--ckpt=git:{ref}")
    assert done.ret == 4
    done.stderr.fnmatch_lines([f"*{told}*"])


def test_a_mark_that_names_no_commit_is_a_failed_test(pytester, repository):
    repository.put("net.py", NET)
    repository.put("test_net.py", TEST.format(module="net", name="Net", more=", ckpt='git:nonsense'"))
    repository.commit()
    done = ran(pytester, "-rf")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*git finds no commit 'nonsense'*"])


def test_outside_of_a_repository(pytester):
    pytester.makepyfile(net=NET, test_net=TEST.format(module="net", name="Net", more=""))
    done = ran(pytester, "--ckpt=git:HEAD")
    assert done.ret == 4
    done.stderr.fnmatch_lines(["*is not in a git repository, and git: needs one*"])


def test_workers_start_one_child(pytester, repository, monkeypatch):
    pytest.importorskip("xdist")
    noting = "import os\nwith open(os.environ['STARTS'], 'a') as log:\n    log.write(f'{__file__}\\n')\n"
    repository.put("net.py", noting + NET)
    tests = TEST.format(module="net", name="Net", more="") + TEST.format(
        module="net", name="Net", more=""
    ).replace("test_gate", "test_other")
    repository.put("test_net.py", tests)
    repository.commit()
    log = pytester.path.parent / f"{pytester.path.name}-starts"
    monkeypatch.setenv("STARTS", str(log))
    done = pytester.runpytest_inprocess("--ckpt=git:HEAD", "--ckpt-device=none", "-n2")
    done.assert_outcomes(passed=2)
    past = [line for line in log.read_text().splitlines() if "ckptcompat-git-" in line]
    assert len(past) == 1
    ran(pytester).assert_outcomes(passed=2)
    assert len([line for line in log.read_text().splitlines() if "ckptcompat-git-" in line]) == 1


def test_the_fixtures(pytester, repository):
    repository.put("net.py", NET)
    repository.put(
        "test_net.py",
        """
        import pytest
        from net import Net
        @pytest.mark.ckpt_compat(model=Net)
        def test_gate(ckpt, ckpt_model, ckpt_path, ckpt_report):
            assert ckpt["fc.weight"].shape == (4, 3)
            assert ckpt_model.fc.weight.is_meta
            assert ckpt_path == "git:HEAD"
            assert ckpt_report.ok
        """,
    )
    repository.commit()
    ran(pytester).assert_outcomes(passed=1)
