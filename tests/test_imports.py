"""Nothing heavy is imported before it is needed: a plugin costs every pytest run on the machine."""

import subprocess
import sys
from pathlib import Path
from pkgutil import iter_modules

import pytest
import torch

import pytest_ckptcompat

HEAVY = {"torch", "numpy", "safetensors", "hypothesis", "tabulate"}
FOLDER = Path(pytest_ckptcompat.__file__).parent


def loaded_after(code, cwd):
    """The names of all modules that a process with this code has in the end."""
    probe = f"import sys\n{code}\nprint('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], cwd=cwd, capture_output=True, text=True, check=True)
    return set(done.stdout.strip().splitlines()[-1].split()[1:])


def pytest_main(*arguments):
    plugins = ["-p", "no:hypothesispytest", "-p", "no:cacheprovider"]
    return f"import pytest; assert pytest.main({[*plugins, *arguments]!r}) == 0\n"


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "test_plain.py").write_text("def test_plain(): ...\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    torch.save({"a": torch.zeros(2)}, tmp_path / "net.pth")
    return tmp_path


def test_a_suite_without_the_marker_makes_no_settings(suite):
    """The start costs milliseconds because what only a checkpoint needs is not even looked at."""
    loaded = loaded_after(pytest_main(), suite)
    assert not loaded & HEAVY
    modules = ("collection", "fixtures", "ini_keys", "marks", "options", "running", "session", "summary")
    assert {name.partition(".")[2] for name in loaded if name.startswith("pytest_ckptcompat")} == {
        "", "core", "core.errors", "core.hooks", "plugin", *(f"plugin.{name}" for name in modules)
    }  # fmt: skip


def test_views_of_a_suite_and_opening_what_ckpt_names(suite):
    views = ["--help"], ["--collect-only"], ["--markers"], ["--fixtures"], ["--ckpt=net.pth"]
    assert not loaded_after("".join(pytest_main(*view) for view in views), suite) & HEAVY


def test_the_package_itself(tmp_path):
    assert not loaded_after("import pytest_ckptcompat; dir(pytest_ckptcompat)", tmp_path) & HEAVY


def test_commands_that_read_headers_alone(suite):
    commands = (
        ["show", "net.pth"],
        ["show", "net.pth", "--json"],
        ["diff", "net.pth", "--against", "net.pth"],
        ["lock", "net.pth", "-o", "l.json"],
    )
    code = "\n".join(f"assert main({command!r}) == 0" for command in commands)
    loaded = loaded_after(f"from pytest_ckptcompat.cli import main\n{code}", suite)
    assert not loaded & {"torch", "pytest"}


def test_only_the_plugins_side_imports_pytest_and_nothing_imports_the_plugin():
    texts = {path.relative_to(FOLDER): path.read_text() for path in FOLDER.rglob("*.py")}
    importing = {path.parts[0] for path, text in texts.items() if "\nimport pytest\n" in text}
    assert importing == {"plugin"}
    for path, text in texts.items():
        assert "from .plugin" not in text, path
        assert "import plugin" not in text, path


def test_no_module_hides_a_public_name():
    """Importing `pytest_ckptcompat.x` sets the package's attribute `x` to the module."""
    modules = {module.name for module in iter_modules(pytest_ckptcompat.__path__)}
    assert modules.isdisjoint(pytest_ckptcompat.__all__)
