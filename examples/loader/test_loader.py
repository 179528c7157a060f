"""The repository's own loading function, tested on the file that its users load."""

import pytest
from detector import CHECKPOINT, load_detector, load_detector_before


@pytest.mark.ckpt_compat(loader=load_detector, ckpt=CHECKPOINT, inputs=(2, 3, 32, 32))
def test_the_loader_loads_everything(ckpt_model):
    assert not ckpt_model.training


def test_the_loader_of_last_week_loads_nothing(ckpt_check):
    report = ckpt_check(ckpt=CHECKPOINT, loader=load_detector_before)
    assert not report.ok
    assert "load_detector_before loads nothing of" in report.verdict
