from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from pytest_ckptcompat.checkpoint.checkpoint import open_checkpoint
from pytest_ckptcompat.checkpoint.lock_writer import lock_of_checkpoint, write_lock
from pytest_ckptcompat.checkpoint.plain_metadata import arguments_at, metadata
from pytest_ckptcompat.core.errors import CheckpointError

HYPER = {"width": 32, "rate": 0.5, "names": ["a", "b"], "deep": {"on": True, "none": None}}


@pytest.fixture
def saved(tmp_path):
    def save(**parts):
        torch.save({"state_dict": {"fc.weight": torch.ones(2, 3)}} | parts, tmp_path / "net.pth")
        return open_checkpoint(tmp_path / "net.pth")

    return save


@pytest.fixture
def locked(tmp_path):
    def lock(ckpt):
        plain, _ = metadata(ckpt)
        write_lock(
            str(tmp_path / "net.ckpt.json"), lock_of_checkpoint(ckpt, str(tmp_path / "x"), plain=plain)
        )
        return open_checkpoint(tmp_path / "net.ckpt.json")

    return lock


def test_plain_values_are_kept_and_the_rest_is_not(saved):
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    ckpt = saved(
        hyper_parameters=HYPER, epoch=3, version="2.1", optimizer_states=[optimizer], empty={}, bad=float("nan"),
        object=torch.nn.ReLU, numbers={0: 1}, shape=(1, 2),
    )  # fmt: skip
    assert metadata(ckpt) == ({"hyper_parameters": HYPER, "epoch": 3, "version": "2.1", "shape": [1, 2]}, [])


def test_a_state_dict_alone_has_no_metadata(tmp_path):
    torch.save({"fc.weight": torch.ones(2)}, tmp_path / "net.pth")
    assert metadata(open_checkpoint(tmp_path / "net.pth")) == ({}, [])


def test_what_is_too_large_is_named(saved):
    found, large = metadata(saved(log="x" * 70_000, epoch=3, more="y" * 60_000))
    assert (list(found), large) == (["epoch", "more"], ["log"])


def test_arguments_from_a_checkpoint_and_from_its_lock(saved, locked):
    ckpt = saved(hyper_parameters=HYPER, args=argparse.Namespace(width=3), a={"b": {"c": 1}})
    lock = locked(ckpt)
    assert json.loads(Path(lock.path).read_text())["ckptcompat_lock"] == 2
    for each in (ckpt, lock):
        assert arguments_at(each.contents, "hyper_parameters") == HYPER
        assert arguments_at(each.contents, "hyper_parameters.deep") == HYPER["deep"]
        assert arguments_at(each.contents, "args") == {"width": 3}
        assert arguments_at(each.contents, "a.b") == {"c": 1}


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("hyper", "has no such part; it has .*hyper_parameters"),
        ("epoch", "is not a dict whose keys are names of arguments"),
        ("state_dict", "holds a value of type TensorSpec, and only plain values become arguments"),
        ("odd", "is not a dict whose keys are names of arguments"),
    ],
)
def test_what_is_not_a_dict_of_arguments(saved, path, told):
    with pytest.raises(CheckpointError, match=rf"model_args='ckpt:{path}'.*{told}"):
        arguments_at(saved(hyper_parameters=HYPER, epoch=3, odd={"a b": 1}).contents, path)


def test_a_lock_without_metadata_says_so(tmp_path, saved):
    write_lock(str(tmp_path / "a.json"), lock_of_checkpoint(saved(epoch=1), str(tmp_path / "a.json")))
    with pytest.raises(
        CheckpointError, match=r"the lock a\.json holds no metadata: lock the checkpoint again"
    ):
        arguments_at(open_checkpoint(tmp_path / "a.json").contents, "epoch")


def test_a_lock_without_more_is_of_the_first_version(tmp_path, saved):
    assert lock_of_checkpoint(saved(epoch=1), str(tmp_path / "a.json"))["ckptcompat_lock"] == 1
