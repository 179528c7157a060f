"""Import ``"package.module:name"``, and say what was tried if that fails."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_ckptcompat.core.errors import ModelError, raised

from .escape import escape, listed
from .redaction import is_meant_as_url, public

if TYPE_CHECKING:
    from collections.abc import Iterable


def imported(name: str) -> Any:
    """Return the object that ``"package.module:name"`` names.

    Raises:
        ModelError: the name is malformed, the module can't be imported, or it has no such attribute.
    """
    if wrong := misnamed(name):
        raise ModelError(wrong)
    module_name, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ModelError(f"{name}: there is no module {error.name!r} {_tried(error.name)}") from error
        raise ModelError(f"{name}: importing {module_name} failed: {raised(error)}") from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"{name}: importing {module_name} failed: {raised(error)}") from error
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            near = difflib.get_close_matches(part, vars(found) if hasattr(found, "__dict__") else (), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ModelError(f"module {module_name!r} has no {path!r}{hint}") from None
    return found


def importable(model: object) -> str:
    """Return ``"package.module:name"`` with which another process finds a callable, or ``""``."""
    if isinstance(model, str):
        return model
    module = sys.modules.get(getattr(model, "__module__", None) or "")
    built = hasattr(model, "load_state_dict") and not isinstance(model, type)
    if built or module is None or module.__name__ == "__main__":
        return ""
    qualified = getattr(model, "__qualname__", "")
    names = [qualified] if "<" not in qualified and qualified else []
    names += [name for name, value in vars(module).items() if value is model]
    for name in names:
        found: Any = module
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is model:
            return f"{module.__name__}:{name}"
    return ""


def misnamed(name: str, what: str = "model name", example: str = "onet:Net") -> str:
    """Return what is wrong with the form of a name and what may have been meant, or ``""``."""
    module, _, path = name.partition(":")
    if is_meant_as_url(name):
        return f"{public(name)!r} is not a {what}. Use 'package.module:name', for example {example!r}"
    if module.endswith(".py") or "/" in module:
        default = example.partition(":")[2]
        meant = f"{module.removesuffix('.py').strip('./').replace('/', '.')}:{path or default}"
    elif module and path:
        return ""
    else:
        before, _, last = module.rpartition(".")
        meant = f"{before}:{last}" if before and last else example
    return f"{name!r} is not a {what}. Use 'package.module:name', for example {meant!r}"


def _tried(module: str) -> str:
    """Return where a missing module was looked for, and what to do."""
    package = sys.modules.get(module.rpartition(".")[0])
    if package is not None:
        return f"in {_listed(getattr(package, '__path__', ()))}"
    installed = {str(Path(prefix).resolve()) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    own = [
        entry
        for entry in dict.fromkeys(sys.path)
        if Path(entry).is_dir() and installed.isdisjoint(map(str, Path(entry).resolve().parents))
    ]
    top = module.partition(".")[0]
    names = [path.stem for entry in own[:4] for path in Path(entry).iterdir() if _is_module(path)]
    if near := difflib.get_close_matches(top, names, 1):
        return f"in {_listed(own)}; did you mean {near[0]!r}?"
    tried = f"in {_listed(own) or 'any folder'}"
    for folder in sorted(Path.cwd().iterdir()):
        if _is_module(folder / f"{top}.py") or _is_module(folder / top):
            there = escape(folder.name, 80)
            return (
                f"{tried}, but there is one in {there}: install the project (pip install -e .), "
                f"or add {there} to PYTHONPATH or to pytest's ini key pythonpath"
            )
    return (
        f"{tried}, and none is installed: install its package, or add its folder (PYTHONPATH, pytest's ini "
        "key pythonpath; or move ckptcompat.toml beside it)"
    )


def _is_module(path: Path) -> bool:
    return path.is_file() if path.suffix == ".py" else (path / "__init__.py").is_file()


def _listed(folders: Iterable[str]) -> str:
    """List the first few folders, relative to the current one where possible."""
    here = Path.cwd()
    paths = [Path(here, folder) for folder in folders]
    shown = [str(path.relative_to(here) if path.is_relative_to(here) else path) for path in paths]
    return listed([escape(each, 80) for each in dict.fromkeys(shown)], 4)
