"""The pytest plugin: options, the marker, the fixtures, and how a report becomes a failed test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from . import extensions
from .errors import CheckpointError
from .session import CASE, PATHS, Incompatible, named, run, settings, shelf, without
from .summary import Summary

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from .case import Case
    from .checkpoint import Checkpoint
    from .collect import CheckFile
    from .pipeline import Check
    from .reports.report import Report
    from .reports.unread import Unread

MARKER = "ckpt_compat"
_CHECK = pytest.StashKey["Check"]()
_GIVEN = pytest.StashKey[list["Unread"]]()


# -- options -----------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, and the ini keys behind them."""
    group = parser.getgroup("ckptcompat", "checkpoint compatibility")
    group.addoption(
        "--ckpt",
        action="append",
        metavar="PATH",
        help="a checkpoint: a file, glob, folder, *.index.json, URL or lock file; repeatable",
    )
    group.addoption(
        "--ckpt-required",
        action="store_true",
        default=None,
        help="a marked test without any checkpoint fails instead of being skipped",
    )
    group.addoption(
        "--ckpt-device",
        metavar="D",
        help="where the forward pass runs: auto (the default), cpu, cuda, cuda:N, rehearse, none",
    )
    group.addoption(
        "--ckpt-require-cuda",
        action="store_true",
        default=None,
        help="fail where the forward pass did not really run on CUDA",
    )
    group.addoption(
        "--ckpt-report",
        action="append",
        default=[],
        metavar="FORMAT:PATH",
        help="write the reports of the run: json:PATH, markdown:PATH or html:PATH; repeatable",
    )
    group.addoption(
        "--ckpt-lock-update",
        action="store_true",
        help="rewrite the lock files that the run uses from the checkpoints or models they name",
    )
    parser.addini("ckpt", "checkpoints, as --ckpt, relative to this file", type="linelist", default=[])
    parser.addini("ckpt_required", "as --ckpt-required", type="bool", default=False)
    parser.addini("ckpt_device", "as --ckpt-device (auto)", type="string", default="")
    parser.addini("ckpt_require_cuda", "as --ckpt-require-cuda", type="bool", default=False)
    parser.addini("ckpt_severity", "lines of rule=error, rule=warn or rule=off", type="linelist", default=[])
    parser.addini("ckpt_limits", "lines of name=value: caps of the readers", type="linelist", default=[])


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """The hooks that others may implement."""
    from . import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and hold the options to their types."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(*, model, ckpt=None, recipe=None, inputs=None, source_model=None, state_dict_key=None, "
        "protect=(), allow=(), device=None, optimizer=None): the checkpoint must load into the model",
    )
    if any(config.getoption(f"ckpt{name}") for name in _OPTIONS) or any(map(config.getini, _KEYS)):
        settings(config)  # what is ill-formed is refused before a test is collected
    config.pluginmanager.register(Summary(config), "ckptcompat-summary")
    extensions.use(config.hook)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Recipes know the operators of this run's plugins no longer."""
    extensions.forget(config.hook)


_OPTIONS = ("", "_required", "_device", "_require_cuda", "_report", "_lock_update")
_KEYS = ("ckpt_device", "ckpt_severity", "ckpt_limits")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Open what ``--ckpt`` names: a path that is no checkpoint ends the run before a test is started."""
    config = session.config
    if config.option.collectonly or hasattr(config, "workerinput"):
        return
    if not (config.getoption("ckpt") or config.getini("ckpt")):
        return
    for path in settings(config).paths:
        try:
            shelf(config).contents(path)
        except CheckpointError as error:
            raise pytest.UsageError(f"--ckpt: {error}") from None


@pytest.hookimpl(optionalhook=True)  # a hook of pytest-xdist
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of pytest-xdist how wide the terminal is; it has none itself."""
    node.workerinput["ckptcompat_width"] = settings(node.config).width


# -- collection --------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each checkpoint, named after it."""
    marker = metafunc.definition.get_closest_marker(MARKER)
    case = None if marker is None else _declared(marker, metafunc.definition)
    if case is None and "ckpt_path" not in metafunc.fixturenames:
        return
    paths = named(case, metafunc.definition)
    if paths:
        from .sources import ids

        if "ckpt_path" not in metafunc.fixturenames:
            metafunc.fixturenames.append("ckpt_path")
        metafunc.parametrize("ckpt_path", paths, indirect=True, ids=ids(paths))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> CheckFile | None:
    """``ckptcompat.toml`` is a file of tests."""
    if file_path.name != "ckptcompat.toml":
        return None
    from .collect import CheckFile

    return CheckFile.from_parent(parent, path=file_path)


def _declared(marker: pytest.Mark, node: pytest.Item) -> Case:
    if marker.args:
        wrong = f"takes keywords only, not {marker.args[0]!r}: write model=..."
        raise pytest.Collector.CollectError(f"{node.nodeid}: @pytest.mark.{MARKER} {wrong}")
    from .case import Case

    try:
        return Case.of(**marker.kwargs)
    except ValueError as error:
        raise pytest.Collector.CollectError(f"{node.nodeid}: @pytest.mark.{MARKER}: {error}") from None


# -- running -----------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test without a checkpoint is skipped, or fails where one is required; it never passes."""
    marker = item.get_closest_marker(MARKER)
    if marker is not None:
        item.stash[CASE] = _declared(marker, item)
    if CASE in item.stash and not _paths(item):
        without(item)


@pytest.hookimpl(wrapper=True, trylast=True)  # inside those that capture output and know of xfail
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Check before the body runs, so that a body of ``...`` is enough; no failing report may go unread."""
    if CASE in item.stash:
        for path in _paths(item):
            _checked(item, path)
    result = yield
    for report in item.stash.get(_GIVEN, ()):
        if not report.read:
            raise Incompatible(report)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """The model and its memory go with the test."""
    try:
        return (yield)
    finally:
        if _forgotten(item):  # not after a header alone: collecting takes longer than such a check
            from .forward.devices import release

            release()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """An incompatible checkpoint is a failed test with the report, not an error with a traceback."""
    report: pytest.TestReport = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, Incompatible) and report.failed:
        from .outcomes import failure

        report.when = "call"  # raised while a fixture was set up, it would count as an error
        report.longrepr = failure(call.excinfo.value.report, item, settings(item.config))
    return report


def _forgotten(item: pytest.Item) -> bool:
    """Drop the test's check; whether it held a loaded model."""
    if _CHECK not in item.stash:
        return False
    loaded = item.stash[_CHECK].model is not None
    del item.stash[_CHECK]
    return loaded


def _paths(item: pytest.Item) -> list[str]:
    """The checkpoints of one test: its parameter, or all where it can't have any (unittest)."""
    if PATHS in item.stash:
        return item.stash[PATHS]
    callspec = getattr(item, "callspec", None)
    if callspec is not None and "ckpt_path" in callspec.params:
        return [callspec.params["ckpt_path"]]
    return named(item.stash.get(CASE, None), item)


def _checked(item: pytest.Item, path: str) -> Check:
    """The check of this test, run once; raises `Incompatible` where it fails."""
    done = item.stash.get(_CHECK, None)
    if done is None or done.path != path:
        case = item.stash.get(CASE, None)
        if case is None:
            pytest.fail(f"ckpt_model and ckpt_report need @pytest.mark.{MARKER}(model=...)", pytrace=False)
        wants_model = "ckpt_model" in getattr(item, "fixturenames", ())
        done = item.stash[_CHECK] = run(item, case, path, wants_model=wants_model)
    assert done.report is not None
    if not done.report.ok:
        raise Incompatible(done.report)
    return done


# -- fixtures ----------------------------------------------------------------------------------------------


@pytest.fixture
def ckpt_path(request: pytest.FixtureRequest) -> str:
    """The path of the checkpoint that this test is run for, as it was given."""
    path: str | None = getattr(request, "param", None)
    if path is None:
        pytest.skip("no checkpoint: give --ckpt PATH")
    return path


@pytest.fixture
def ckpt(ckpt_path: str, request: pytest.FixtureRequest) -> Checkpoint:
    """The opened checkpoint: keys, shapes and dtypes from the header; values only when they are asked for.

    Example::

        def test_head(ckpt):
            assert ckpt["out2.weight"].shape == (14, 256)
    """
    case = request.node.stash.get(CASE, None)
    try:
        contents = shelf(request.config).contents(ckpt_path)
        return contents.checkpoint(case.state_dict_key if case else None)
    except CheckpointError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def ckpt_report(ckpt_path: str, request: pytest.FixtureRequest) -> Report:
    """The report of this test's check; it is a passing one, since a failing one ends the test."""
    report = _checked(request.node, ckpt_path).report
    assert report is not None
    return report


@pytest.fixture
def ckpt_model(ckpt_path: str, request: pytest.FixtureRequest) -> Any:
    """The model, recipe applied and checkpoint loaded, on the forward pass's device, in eval mode.

    A lock file has no values: its model is on the meta device, with every shape and dtype.
    """
    return _checked(request.node, ckpt_path).shown_model


@pytest.fixture
def ckpt_check(request: pytest.FixtureRequest) -> Callable[..., Report]:
    """The same check as a callable, for tests without the marker.

    It gives the report; of several checkpoints, the first that is not ok. A test that does not look at such a
    report fails with it: nothing passes unread.

    Example::

        def test_every_head(ckpt_check):
            for size in (4, 14):
                ckpt_check(lambda: Net(size), f"net{size}.pth", inputs=(2, 3, 48, 48))

        def test_the_old_head_is_refused(ckpt_check):
            assert not ckpt_check(Net, "net4.pth").ok
    """

    def checked(model: Any, ckpt: Any, **arguments: Any) -> Report:
        from .case import Case
        from .checkpoint import Checkpoint
        from .reports.unread import Unread

        opened = ckpt if isinstance(ckpt, Checkpoint) else None
        try:
            case = Case.of(model=model, ckpt=ckpt if opened is None else opened.path, **arguments)
        except ValueError as error:
            pytest.fail(f"ckpt_check: {error}", pytrace=False)
        report = None
        for path in named(case, request.node):
            report = run(request.node, case, path, opened=opened).report
            if report is not None and not report.ok:
                unread = Unread.given(report)
                request.node.stash.setdefault(_GIVEN, []).append(unread)
                return unread
        if report is None:
            pytest.fail("ckpt_check: no checkpoint: name one, or give --ckpt PATH", pytrace=False)
        return report

    return checked
