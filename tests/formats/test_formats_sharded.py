from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from equality import assert_same_state
from safetensors.torch import save_file
from torch import nn

from pytest_ckptcompat import CheckpointError, open_checkpoint
from pytest_ckptcompat.core.limits import Limits

if TYPE_CHECKING:
    from pathlib import Path

A = {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3)}
B = {"b.weight": torch.randn(2, 3, dtype=torch.float64)}
WHOLE = {**A, **B}
SAFE, BIN = "model.safetensors.index.json", "pytorch_model.bin.index.json"


def save_shard(state: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


def write(folder: Path, shards: dict[str, dict[str, Any]], index: str = SAFE, **more: Any) -> Path:
    """A sharded checkpoint; gives the path of its index."""
    for name, state in shards.items():
        save_shard(state, folder / name)
    weight_map = {key: name for name, state in shards.items() for key in state}
    text = {"metadata": {"total_size": 1, "nested": [{"weight_map": {}}]}, "weight_map": weight_map, **more}
    (folder / index).write_text(json.dumps(text))
    return folder / index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_by_its_index_or_its_folder(tmp_path: Path, suffix: str) -> None:
    shards = {f"model-00001-of-00002.{suffix}": A, f"model-00002-of-00002.{suffix}": B}
    index = write(tmp_path, shards, SAFE if suffix == "safetensors" else BIN)
    for path in (index, tmp_path, f"{tmp_path}/"):
        ckpt = open_checkpoint(path)
        assert ckpt.format == ("sharded safetensors" if suffix == "safetensors" else "sharded torch-zip")
        assert_same_state(ckpt, WHOLE)
    assert open_checkpoint(f"{tmp_path}/").name == tmp_path.name


def test_the_order_is_that_of_the_index(tmp_path: Path) -> None:
    index = write(tmp_path, {"1.safetensors": A, "2.safetensors": B})
    content = json.loads(index.read_text())
    content["weight_map"] = dict(sorted(content["weight_map"].items(), reverse=True))
    index.write_text(json.dumps(content))
    assert list(open_checkpoint(index)) == sorted(WHOLE, reverse=True)


def test_ties_within_a_shard_and_none_across(tmp_path: Path) -> None:
    shared = torch.ones(2)
    write(tmp_path, {"1.bin": {"a": shared, "b": shared}, "2.bin": {"c": shared}}, BIN)
    assert open_checkpoint(tmp_path).ties == [("a", "b")]


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    write(tmp_path, {"1.bin": A, "2.bin": B}, BIN)
    write(tmp_path, {"1.safetensors": A, "2.safetensors": B}, SAFE)
    assert open_checkpoint(tmp_path).format == "sharded safetensors"


def test_of_several_checkpoints_in_a_folder_none_is_guessed(tmp_path: Path) -> None:
    write(tmp_path, {"1.safetensors": A}, "one.safetensors.index.json")
    write(tmp_path, {"2.safetensors": B}, "two.safetensors.index.json")
    with pytest.raises(CheckpointError, match=r"2 sharded checkpoints, name one: one\..*, two\."):
        open_checkpoint(tmp_path)


def test_links_elsewhere_are_followed(tmp_path: Path) -> None:
    """Hub caches keep the files in a folder of blobs and link to them."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    folder.mkdir()
    save_shard(A, blobs / "x.safetensors")
    (folder / "1.safetensors").symlink_to(blobs / "x.safetensors")
    (folder / SAFE).write_text(json.dumps({"weight_map": dict.fromkeys(A, "1.safetensors")}))
    assert_same_state(open_checkpoint(folder), A)


def test_shards_in_subfolders(tmp_path: Path) -> None:
    assert_same_state(open_checkpoint(write(tmp_path, {"part/1.safetensors": A, "2.safetensors": B})), WHOLE)


def test_an_unsafe_shard_makes_the_whole_unsafe(tmp_path: Path) -> None:
    write(tmp_path, {"1.bin": A, "2.bin": {**B, "module": nn.ReLU()}}, BIN)
    ckpt = open_checkpoint(tmp_path)
    assert "torch.nn.modules.activation.ReLU" in ckpt.unsafe
    assert list(ckpt.objects) == ["module"]


# -- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../1.safetensors", "/etc/passwd", "a/../../x", "..", "", "\\\\host\\x", "C:\\x", "..\\x", "x\0y"],
)
def test_paths_stay_inside_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    index = write(folder, {"1.safetensors": A}) if folder.mkdir() is None else folder
    save_shard(A, tmp_path / "1.safetensors")
    index.write_text(json.dumps({"weight_map": {"a.weight": name}}))
    with pytest.raises(CheckpointError, match="names a file outside the checkpoint's folder"):
        open_checkpoint(index)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = write(tmp_path, {"1.safetensors": A, "2.safetensors": B})
    (tmp_path / "2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"shard 2\.safetensors: .* does not exist"):
        open_checkpoint(index)


def test_a_shard_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    index = write(tmp_path, {"1.safetensors": A, "2.safetensors": B})
    (tmp_path / "2.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    )
    with pytest.raises(CheckpointError, match=r"shard 2\.safetensors: it is a Git LFS pointer"):
        open_checkpoint(index)


def test_a_shard_that_is_an_index_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / SAFE).write_text(json.dumps({"weight_map": {"a": SAFE}}))
    with pytest.raises(CheckpointError, match="JSON text"):
        open_checkpoint(tmp_path)


def test_a_shard_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    index = write(tmp_path, {"1.safetensors": A})
    (tmp_path / "1.safetensors").unlink()
    os.mkfifo(tmp_path / "1.safetensors")
    with pytest.raises(CheckpointError, match="a pipe"):
        open_checkpoint(index)


def test_a_key_that_its_shard_lacks_is_named(tmp_path: Path) -> None:
    index = write(tmp_path, {"1.safetensors": A})
    index.write_text(json.dumps({"weight_map": {"a.weight": "1.safetensors", "q": "1.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"says that q is in 1\.safetensors, and it is not"):
        open_checkpoint(index)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"weight_map": {"a": "x", "a": "x"}}', "the key a twice"),
        ('{"weight_map": {}, "weight_map": {}}', "the key weight_map twice"),
        ('{"weight_map": {"a": 1}}', "not a table of file names"),
        ('{"weight_map": ["a"]}', "not a table of file names"),
        ('{"weight_map": {"a": "x"}', "damaged: Expecting ',' delimiter"),
        ('{"weight_map": {"a": "x"}} x', "damaged: Extra data"),
        ('{"config": {"hidden_size": 3}}', "JSON text, but not the index"),
        ('{"a": [1, }', "damaged"),
        ("{}", "JSON text, but not the index"),
    ],
)
def test_damaged_indexes_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / SAFE).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / SAFE)


@pytest.mark.parametrize(("cap", "value"), [("tensors", 2), ("files", 1), ("index", 10)])
def test_caps(tmp_path: Path, cap: str, value: int) -> None:
    index = write(tmp_path, {"1.safetensors": A, "2.safetensors": B})
    with pytest.raises(CheckpointError, match=rf"limit exceeded: .*limit {cap}={value}\)"):
        open_checkpoint(index, limits=Limits.parse("--limit", [f"{cap}={value}"]))


def test_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder that holds no checkpoint"):
        open_checkpoint(tmp_path)
