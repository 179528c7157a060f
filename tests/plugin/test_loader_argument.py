"""``loader=`` in the marker, in ``ckptcompat.toml``, in the fixtures and on the command line."""

from __future__ import annotations

import json

import pytest

from pytest_ckptcompat.cli import main

LOADING = """
    import torch
    from nets import V1

    def load(path):
        model = V1()
        model.load_state_dict(torch.load(path, weights_only=True))
        return model

    def filtering(path):
        model = V1()
        kept = {key: value for key, value in torch.load(path).items() if key.startswith("head")}
        model.load_state_dict(kept, strict=False)
        return model
"""


@pytest.fixture
def loading(project: pytest.Pytester) -> pytest.Pytester:
    project.makepyfile(loading=LOADING)
    return project


def test_the_model_of_a_marked_test_is_the_loader_s(loading: pytest.Pytester) -> None:
    loading.makepyfile(
        """
        import pytest
        import torch
        from loading import filtering, load

        @pytest.mark.ckpt_compat(loader=load, ckpt="v1.pth", inputs=(3, 6))
        def test_right(ckpt_model, ckpt_report):
            assert torch.equal(ckpt_model.head.weight, torch.load("v1.pth")["head.weight"])
            assert not ckpt_model.training
            assert ckpt_report.stages[-1].status == "skipped"

        @pytest.mark.ckpt_compat(loader=filtering, ckpt="v1.pth")
        def test_wrong(): ...

        def test_by_hand(ckpt_check):
            assert ckpt_check(ckpt="v1.pth", loader=load).ok
        """
    )
    result = loading.runpytest()
    result.assert_outcomes(passed=2, failed=1)
    text = "\n".join(result.outlines)
    assert "loading.filtering does not load all of v1.pth into nets.V1: " in text
    assert "loader-missed  body.0.weight" in text
    assert "Traceback" not in text


def test_a_table_needs_a_loader_alone(loading: pytest.Pytester) -> None:
    text = """
        [[check]]
        name = "right"
        ckpt = "v1.pth"
        loader = "loading:load"

        [[check]]
        name = "wrong"
        ckpt = "v1.pth"
        loader = "loading:filtering"
    """
    loading.makefile(".toml", ckptcompat=text)
    result = loading.runpytest("-v")
    result.stdout.fnmatch_lines(["ckptcompat.toml::right PASSED*", "ckptcompat.toml::wrong FAILED*"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('loader=load, ckpt="*.pth"', "a loader gets one file or folder"),
        ("loader=load, direction='full'", "is for a model's own strict load"),
        (
            "recipe=None",
            "model= is missing: a callable giving the model, or 'package.module:name' (or loader=",
        ),
    ],
)
def test_what_a_loader_can_t_be_checked_with(loading: pytest.Pytester, arguments: str, said: str) -> None:
    loading.makepyfile(
        f"""
        import pytest
        from loading import load

        @pytest.mark.ckpt_compat({arguments})
        def test_it(): ...
        """
    )
    result = loading.runpytest()
    assert said in "\n".join(result.outlines)
    assert result.parseoutcomes().keys() & {"failed", "error", "errors"}


def test_the_command_needs_no_model(
    loading: pytest.Pytester, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(loading.path)
    assert main(["check", "v1.pth", "--loader", "loading:load", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loader"] == "loading.load"
    assert main(["check", "v1.pth", "--loader", "loading:filtering"]) == 1
    assert main(["check", "v1.pth", "--loader", "loading:nothing"]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["check", "v1.pth"])
