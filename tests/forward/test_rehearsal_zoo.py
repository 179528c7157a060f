from __future__ import annotations

import pytest
import torch
from rehearsal_zoo import ZOO

from pytest_ckptcompat.forward.inputs import Inputs
from pytest_ckptcompat.forward.real import forward
from pytest_ckptcompat.forward.rehearsal import rehearse
from pytest_ckptcompat.models.blueprint import blueprint


@pytest.mark.parametrize("name", ZOO)
def test_no_false_alarm_and_the_shapes_of_the_real_pass(name: str) -> None:
    exhibit = ZOO[name]
    inputs, model = Inputs.parse(exhibit.inputs), exhibit.kind()
    real = forward(model, inputs)
    assert real.status == "passed", real.detail
    for built in (model, blueprint(exhibit.kind).schema()):
        outcome = rehearse(built, inputs)
        if "no fake kernel (UnsupportedOperatorException: aten._fft" in outcome.detail:
            pytest.skip(f"torch {torch.__version__} has no fake FFT")
        assert outcome.status == "rehearsed", outcome.detail
        assert outcome.detail.partition("; peak ")[0].endswith(real.detail.removeprefix("on cpu"))


@pytest.mark.parametrize("name", ZOO)
def test_a_tensor_left_on_the_cpu_is_found_where_it_is(name: str) -> None:
    exhibit = ZOO[name]
    inputs = Inputs.parse(exhibit.inputs)
    model = exhibit.kind(planted=True)
    assert forward(model, inputs).status == "passed"
    outcome = rehearse(model, inputs)
    assert outcome.status == "failed", outcome.detail
    [found] = outcome.findings
    assert found.rule == "forward-error"
    assert found.key == exhibit.bug
    assert "cuda:0" in found.message
    assert "cpu" in found.message
    assert "rehearsal_zoo.py:" in found.message
    assert f"({type(model.get_submodule(exhibit.bug)).__name__})" in found.message or exhibit.bug == ""
