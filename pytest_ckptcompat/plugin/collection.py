"""Collect marked tests, one for each checkpoint, and the tests of ``ckptcompat.toml``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from .marks import cases, is_marked
from .session import MARKER, CheckItem, Declared, named, settings

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from pytest_ckptcompat.checks.arguments import CheckArguments

    from .toml_file import CheckFile


class Chosen(NamedTuple):
    """The parameter of a test: its checkpoint's path, if any, and which of the test's cases is checked."""

    path: str | None
    case: int

    def __repr__(self) -> str:
        """Return the path as ``--setup-show`` prints it, without the secrets of a URL."""
        return repr(self.path)


class _Place(NamedTuple):
    """A checkpoint's path, and how many earlier cases of the test check it; all parameters share these."""

    path: str | None
    earlier: int


@pytest.hookimpl(trylast=True)  # after parameters, whose marks may also name checkpoints
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test for each checkpoint, named after it."""
    node = metafunc.definition
    wanted = "ckpt_path" in metafunc.fixturenames
    if any(mark.name == "parametrize" and "ckpt_path" in str(mark.args[:1]) for mark in node.iter_markers()):
        return  # the test names its checkpoints itself
    given: list[Sequence[pytest.Mark]] = [call.marks for call in metafunc._calls] or [()]
    marked = is_marked(node) or any(mark.name == MARKER for marks in given for mark in marks)
    if not marked and not wanted:
        return
    unmarked = _choices(node, ()) if wanted or is_marked(node) else {}
    choices = [
        _choices(node, marks) if any(mark.name == MARKER for mark in marks) else unmarked for marks in given
    ]
    places = list(dict.fromkeys(place for its in choices for place in its))
    if not (any(place.path for place in places) or len(places) > 1):
        return
    from .checkpoints import ids

    if not wanted:
        metafunc.fixturenames.append("ckpt_path")
    names = ids([place.path or "no checkpoint" for place in places])
    metafunc.parametrize("ckpt_path", places, indirect=True, ids=names)
    calls, kept = iter(metafunc._calls), []  # each given call, repeated for each place
    for its in choices:
        for place, call in zip(places, calls, strict=False):
            if place in (its or places[:1]):
                call.params["ckpt_path"] = its.get(place, Chosen(place.path, 0))
                kept.append(call)
    metafunc._calls = kept


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(
    collector: pytest.Collector, name: str, obj: object
) -> Generator[None, Any, Any]:
    """Report a mark that got a class by mistake."""
    made = yield
    if any(mark.name == MARKER and not mark.kwargs for mark in _marks_of_class(name, obj)):
        model = type(obj).__name__
        told = f"@pytest.mark.{MARKER}({model}) marks the class {model}, not the test: write model={model}"
        return CheckItem.from_parent(collector, name=name, line=1, fault=f"{collector.nodeid}: {told}")
    return made


def add_gate_of_rootdir(config: pytest.Config) -> None:
    """Make a plain ``pytest`` collect the rootdir's ``ckptcompat.toml`` if testpaths leaves it out."""
    gate = config.rootpath / "ckptcompat.toml"
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS or not gate.is_file():
        return
    folder = config.invocation_params.dir
    named = [folder / argument.partition("::")[0] for argument in config.args]
    if any(path.resolve() in (gate, *gate.parents) for path in named):
        return
    if not config.hook.pytest_ignore_collect(collection_path=gate, config=config):
        config.args.append(str(gate))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> CheckFile | None:
    """Collect ``ckptcompat.toml`` as a file of tests."""
    if file_path.name != "ckptcompat.toml":
        return None
    from .toml_file import CheckFile

    return CheckFile.from_parent(parent, path=file_path)


def declared(item: pytest.Item) -> list[Declared]:
    """Return the checks of a marked test: that of its parameter, or all if it has none (unittest).

    Raises:
        ValueError: a mark is invalid.
    """
    chosen = getattr(item, "callspec", None) and item.callspec.params.get("ckpt_path")  # type: ignore[attr-defined]
    if isinstance(chosen, Chosen):
        return [Declared(cases(item)[chosen.case], chosen.path)]
    if chosen:
        return [Declared(case, str(chosen)) for case in cases(item)]
    return [Declared(case, path) for case in cases(item) for path in _paths(case, item)]


def _choices(node: pytest.Item, marks: Sequence[pytest.Mark]) -> dict[_Place, Chosen]:
    """Return the checks of a test with these marks of its parameters, or none if a mark is invalid."""
    if not is_marked(node) and not any(mark.name == MARKER for mark in marks):
        return {_Place(path, 0): Chosen(path, 0) for path in settings(node.config).paths}
    choices: dict[_Place, Chosen] = {}
    times = Counter[str | None]()
    try:
        for number, case in enumerate(cases(node, marks)):
            for path in _paths(case, node):
                choices[_Place(path, times[path])] = Chosen(path, number)
                times[path] += 1
    except ValueError:
        return {}
    return choices


def _paths(case: CheckArguments, node: pytest.Item) -> Sequence[str | None]:
    return named(case, node) or [None]


def _marks_of_class(name: str, obj: object) -> Sequence[pytest.Mark]:
    """Return the marks on the class of an object that is named like a test."""
    if not name.startswith("test") or isinstance(obj, type) or not callable(obj):
        return ()
    found = getattr(type(obj), "pytestmark", ())
    return found if isinstance(found, (list, tuple)) else ()
