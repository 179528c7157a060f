from __future__ import annotations

import pytest

pytest.importorskip("xdist")

MARKED = """
    import pytest

    def net():
        open("built", "w").close()

    @pytest.mark.ckpt_compat(model=net{more})
    def test_net():
        pass

    def test_other():
        pass
"""


@pytest.fixture(params=["torchrun", "by hand"])
def ranks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torchrun":
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize("workers", [("-n1",), ("--dist=load", "--tx=popen")])
def test_workers_under_torchrun_are_refused_at_start(
    pytester: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    pytester.makepyfile(MARKED.format(more=""))
    result = pytester.runpytest_inprocess("--ckpt=net.pth", *workers)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    told = [line for line in result.errlines if line.strip()]
    assert len(told) == 1
    assert "under torchrun" in told[0]
    assert "leave out -n" in told[0]
    assert not (pytester.path / "built").exists()


@pytest.mark.usefixtures("ranks")
def test_marks_that_name_their_checkpoint_fail_there(pytester: pytest.Pytester) -> None:
    """At start nothing tells of them; other tests run as ever."""
    pytester.makepyfile(MARKED.format(more=', ckpt="net.pth"'))
    result = pytester.runpytest_inprocess("-n1")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["pytest-xdist (-n) under torchrun: *"])
    assert not (pytester.path / "built").exists()


@pytest.mark.usefixtures("ranks")
def test_options_of_others_are_not_ours(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("def pytest_addoption(parser): parser.addoption('--ckpt-folder', default='runs')")
    pytester.makepyfile("def test_other(): pass")
    pytester.runpytest_inprocess("-n1").assert_outcomes(passed=1)


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize("workers", [(), ("-n0",)])
def test_torchrun_alone_is_fine(pytester: pytest.Pytester, workers: tuple[str, ...]) -> None:
    pytester.makepyfile("def test_other(): pass")
    result = pytester.runpytest_inprocess("--ckpt-device=none", *workers)
    result.assert_outcomes(passed=1)


def test_workers_alone_are_fine(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_other(): pass")
    pytester.runpytest_inprocess("--ckpt-device=none", "-n1").assert_outcomes(passed=1)
