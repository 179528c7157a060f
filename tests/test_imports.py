"""Nothing heavy is imported before it is needed: a plugin costs every pytest run on the machine."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "safetensors", "hypothesis", "tabulate")


def loaded_after(code, cwd):
    probe = f"import sys\n{code}\nprint('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1].removeprefix("LOADED").split()


def pytest_main(*arguments):
    plugins = ["-p", "no:hypothesispytest", "-p", "no:cacheprovider"]
    return f"import pytest; assert pytest.main({[*plugins, *arguments]!r}) == 0"


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "test_plain.py").write_text("def test_plain(): ...\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


@pytest.mark.parametrize("arguments", [["--help"], ["--collect-only"], [], ["--markers"], ["--fixtures"]])
def test_a_suite_without_the_marker(suite, arguments):
    assert loaded_after(pytest_main(*arguments), suite) == []


def test_a_suite_without_the_marker_makes_no_settings(suite):
    """The start costs milliseconds because what only a checkpoint needs is not even looked at."""
    probe = (
        "import sys\n"
        + pytest_main()
        + "\nprint(*[m for m in sys.modules if m.startswith('pytest_ckptcompat')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=suite, capture_output=True, text=True, check=True
    )
    loaded = {
        name.removeprefix("pytest_ckptcompat").strip(".") for name in done.stdout.splitlines()[-1].split()
    }
    modules = ("collection", "fixtures", "ini_keys", "marks", "options", "running", "session", "summary")
    assert loaded == {
        "",
        "core",
        "core.errors",
        "core.hooks",
        "plugin",
        *(f"plugin.{name}" for name in modules),
    }


def test_opening_what_ckpt_names(suite):
    import torch

    torch.save({"a": torch.zeros(2)}, suite / "net.pth")
    assert loaded_after(pytest_main("--ckpt=net.pth"), suite) == []


def test_the_package_itself(tmp_path):
    assert loaded_after("import pytest_ckptcompat; dir(pytest_ckptcompat)", tmp_path) == []


@pytest.mark.parametrize(
    "command",
    [
        ["show", "a.pth"],
        ["show", "a.pth", "--json"],
        ["diff", "a.pth", "--against", "a.pth"],
        ["lock", "a.pth", "-o", "l.json"],
    ],
)
def test_commands_that_read_headers_alone(tmp_path, command):
    import torch

    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pth")
    code = f"from pytest_ckptcompat.cli import main; assert main({command!r}) == 0"
    assert "torch" not in loaded_after(code, tmp_path)
    assert "pytest" not in loaded_after(code, tmp_path)


def test_only_the_plugins_side_imports_pytest():
    from pathlib import Path

    import pytest_ckptcompat

    folder = Path(pytest_ckptcompat.__file__).parent
    importing = {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if "\nimport pytest\n" in path.read_text()
    }
    assert importing
    assert {Path(name).parent.name for name in importing} == {"plugin"}


def test_nothing_imports_the_plugin():
    from pathlib import Path

    import pytest_ckptcompat

    folder = Path(pytest_ckptcompat.__file__).parent
    for path in folder.rglob("*.py"):
        text = path.read_text()
        assert "from .plugin" not in text, path
        assert "import plugin" not in text, path


def test_no_module_hides_a_public_name():
    """Importing `pytest_ckptcompat.x` sets the package's attribute `x` to the module."""
    from pkgutil import iter_modules

    import pytest_ckptcompat

    modules = {module.name for module in iter_modules(pytest_ckptcompat.__path__)}
    assert modules.isdisjoint(pytest_ckptcompat.__all__)
