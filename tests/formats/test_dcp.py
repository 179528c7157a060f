from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from dcp_ranks import whole
from equality import assert_same, assert_same_state
from tensor_zoo import dtypes, layouts, of_dtype
from torch import nn

from pytest_ckptcompat import CheckpointError, open_checkpoint
from pytest_ckptcompat.checkpoint import reader as reading
from pytest_ckptcompat.core.limits import Limits

pytestmark = pytest.mark.filterwarnings("ignore")


def save(state: Any, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a model and its optimizer, and what was saved."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    state = {
        "model": model.state_dict(),
        "optim": optimizer.state_dict(),
        "epoch": 3,
        "_extra_state": {"a": [1]},
    }
    return save(state, tmp_path_factory.mktemp("dcp") / "step-1"), state


def unmarked(state: Any) -> dict[str, Any]:
    return dict(state)


def test_the_model_is_found(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, state = trained
    ckpt = open_checkpoint(folder)
    assert (ckpt.format, ckpt.name, ckpt.state_dict_key, ckpt.unsafe) == ("dcp", "step-1", "model", "")
    assert_same_state(ckpt, unmarked(state["model"]))


def test_one_part_is_taken_without_its_prefix(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, state = trained
    assert_same_state(open_checkpoint(folder, "model"), unmarked(state["model"]))
    assert list(open_checkpoint(folder, "optim.state.0")) == ["step", "exp_avg", "exp_avg_sq"]


def test_all_of_it_has_keys_joined_by_dots(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, state = trained
    ckpt = open_checkpoint(folder, "")
    assert [key for key in ckpt if key.startswith("model.")] == [f"model.{key}" for key in state["model"]]
    assert ckpt.objects["epoch"] == 3
    assert ckpt.objects["_extra_state"] == {"a": [1]}
    assert_same(ckpt.tensor("optim.state.1.exp_avg"), state["optim"]["state"][1]["exp_avg"])


def test_the_wrapper_is_as_torch_save_would_have_it(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, state = trained
    ckpt = open_checkpoint(folder)
    optim = ckpt.wrapper["optim"]  # type: ignore[index]
    assert optim["param_groups"] == state["optim"]["param_groups"]
    assert list(optim["state"]) == [0, 1, 2, 3]
    assert_same(ckpt.materialise(optim["state"][0]["exp_avg_sq"]), state["optim"]["state"][0]["exp_avg_sq"])


def test_a_flat_state_dict_whose_keys_have_dots(tmp_path: Path) -> None:
    state = {"model.layers.0.weight": torch.ones(2), "model.layers.1.weight": torch.zeros(3)}
    assert_same_state(open_checkpoint(save(state, tmp_path / "x")), state)


def test_nested_dicts_under_no_usual_name(tmp_path: Path) -> None:
    state = {"encoder": {"w": torch.ones(2)}, "decoder": {"w": torch.zeros(3)}}
    ckpt = open_checkpoint(save(state, tmp_path / "x"))
    assert_same_state(ckpt, {"encoder.w": torch.ones(2), "decoder.w": torch.zeros(3)})


def test_every_dtype_and_layout(tmp_path: Path) -> None:
    state = {str(dtype): of_dtype(dtype, 3, 5) for dtype in dtypes() if "bits" not in str(dtype)}
    state |= {key: value for key, value in layouts().items() if value.numel()}
    ckpt = open_checkpoint(save(state, tmp_path / "x"))
    for key, value in state.items():
        assert_same(ckpt.tensor(key), value, key)
        assert_same(torch.empty(value.shape, dtype=value.dtype).copy_(ckpt.stored()[key]), value, key)


def test_from_several_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "x"
    subprocess.run(
        [sys.executable, Path(__file__).parents[1] / "support" / "dcp_ranks.py", folder],
        check=True,
        timeout=300,
    )
    assert {file.name for file in folder.iterdir()} == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    ckpt = open_checkpoint(folder)
    assert [len(ckpt.contents.header.storages[ckpt[key].storage]) for key in ("rows", "columns")] == [2, 2]
    assert {*ckpt} == {*whole()}
    assert_same_state(ckpt, {key: whole()[key] for key in ckpt})
    monkeypatch.setattr(reading, "PIECE", 8)
    for key, value in whole().items():
        wide = torch.empty((*value.shape, 2), dtype=torch.float64)[..., 1]
        assert torch.equal(wide.copy_(ckpt.stored()[key]), value.double())


def test_only_metadata_and_objects_are_read(tmp_path: Path) -> None:
    ckpt = open_checkpoint(
        save({"a": torch.ones(1_000_000), "b": torch.ones(1_000_000), "n": 1}, tmp_path / "x")
    )
    assert ckpt.bytes_read < 20_000


# -- what is refused ---------------------------------------------------------------------------------------


def rewrite(folder: Path, change: Any) -> None:
    """Change the index of a checkpoint of our own."""
    index = pickle.loads((folder / ".metadata").read_bytes())
    change(index)
    (folder / ".metadata").write_bytes(pickle.dumps(index))


def _place(index: Any, key: str = "a") -> Any:
    return next(place for at, place in index.storage_data.items() if at.fqn == key)


def _outside(index: Any) -> None:
    _place(index).relative_path = "../x/__0_0.distcp"


def _absolute(index: Any) -> None:
    _place(index).relative_path = "/etc/passwd"


def _far(index: Any) -> None:
    _place(index).offset = 1 << 40


def _negative(index: Any) -> None:
    _place(index).offset = -5


def _missing_file(index: Any) -> None:
    _place(index).relative_path = "__9_0.distcp"


def _transformed(index: Any) -> None:
    _place(index).transform_descriptors = ["zstd"]


def _unplaced(index: Any) -> None:
    index.storage_data.clear()


def _bigger(index: Any) -> None:
    index.state_dict_metadata["a"].size = torch.Size([5, 4])


def _smaller(index: Any) -> None:
    index.state_dict_metadata["a"].size = torch.Size([2, 4])


def _chunkless(index: Any) -> None:
    index.state_dict_metadata["a"].chunks = []


def _odd_dtype(index: Any) -> None:
    index.state_dict_metadata["a"].properties.dtype = torch.nn.ReLU


def _no_table(index: Any) -> None:
    index.state_dict_metadata = None


def _number_as_key(index: Any) -> None:
    index.state_dict_metadata[5] = index.state_dict_metadata.pop("a")


def _two_at_one_place(index: Any) -> None:
    index.planner_data = {"a": ("q",), "b": ("q",)}


def _inside_a_tensor(index: Any) -> None:
    index.planner_data = {"a": ("q",), "b": ("q", "r")}


REFUSED = {
    _outside: "outside the checkpoint's folder",
    _absolute: "outside the checkpoint's folder",
    _far: "is truncated",
    _negative: "damaged entry",
    _missing_file: "__9_0.distcp does not exist",
    _transformed: "compressed or encrypted",
    _unplaced: "does not say where",
    _bigger: "do not make up a tensor",
    _smaller: "lies outside the tensor",
    _chunkless: "do not make up a tensor",
    _odd_dtype: "a: dtype",
    _no_table: "lacks the list of tensors",
    _number_as_key: "a key that is no string",
    _two_at_one_place: "puts two things at q",
    _inside_a_tensor: r"puts two things at q\.r",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save({"a": torch.ones(3, 4), "b": torch.zeros(2)}, tmp_path / "x")


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_damaged_indexes_are_refused(folder: Path, change: Any) -> None:
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=REFUSED[change]):
        open_checkpoint(folder)


def test_a_block_that_is_not_what_the_index_says_is_refused(folder: Path) -> None:
    def swap(index: Any) -> None:
        first, second = _place(index, "a"), _place(index, "b")
        first.offset, second.offset = second.offset, first.offset
        first.length, second.length = second.length, first.length

    rewrite(folder, swap)
    ckpt = open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="a block of a tensor is not what the index says"):
        ckpt.tensor("a")


def test_an_index_that_names_what_torch_would_run_is_unsafe(folder: Path) -> None:
    rewrite(folder, lambda index: index.planner_data.update(evil=print))
    ckpt = open_checkpoint(folder)
    assert "builtins.print" in ckpt.unsafe
    assert_same(ckpt.tensor("a"), torch.ones(3, 4))


def test_every_truncation_of_the_index_is_an_error(folder: Path) -> None:
    data = (folder / ".metadata").read_bytes()
    for length in range(0, len(data), 7):
        (folder / ".metadata").write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)


def test_its_index_alone_is_known_for_what_it_is(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="name the folder that holds it"):
        open_checkpoint(folder / ".metadata")


@pytest.mark.parametrize(
    ("cap", "value"), [("tensors", 1), ("dims", 1), ("pickle_bytes", 100), ("key_bytes", 3)]
)
def test_caps(tmp_path: Path, cap: str, value: int) -> None:
    folder = save({"aaaa": torch.ones(3, 4), "b": torch.zeros(2)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match=rf"limit exceeded: .*limit {cap}={value}\)"):
        open_checkpoint(folder, limits=Limits.parse([f"{cap}={value}"]))
