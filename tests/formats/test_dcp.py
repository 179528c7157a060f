from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from dcp_ranks import whole
from equality import assert_same, assert_same_state
from tensor_zoo import dtypes, layouts, of_dtype
from torch import nn
from torch.distributed.checkpoint import metadata as md
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)

from pytest_ckptcompat import CheckpointError, open_checkpoint
from pytest_ckptcompat.checkpoint import reader as reading
from pytest_ckptcompat.core.limits import Limits
from pytest_ckptcompat.formats import dcp as dcp_format
from pytest_ckptcompat.formats.dcp_places import fields
from pytest_ckptcompat.formats.pickle_machine import Machine
from pytest_ckptcompat.formats.pickle_records import Records
from pytest_ckptcompat.optimizer.state import saved_states

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.filterwarnings("ignore")


def save(state: Any, folder: Path) -> Path:
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


def test_the_model_is_found(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, state = trained
    ckpt = open_checkpoint(folder)
    assert (ckpt.format, ckpt.name, ckpt.state_dict_key, ckpt.unsafe) == ("dcp", "step-1", "model", "")
    assert_same_state(ckpt, dict(state["model"]))


def test_one_part_is_taken_without_its_prefix(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, state = trained
    assert_same_state(open_checkpoint(folder, "model"), dict(state["model"]))
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


def set_in(what: Any, **attributes: Any) -> Callable[[Any], None]:
    """A change of attributes of the part of the index that `what` gives."""

    def change(index: Any) -> None:
        for name, value in attributes.items():
            setattr(what(index), name, value)

    return change


def _entry(index: Any) -> Any:
    return index.state_dict_metadata["a"]


def _overlapping(index: Any) -> None:
    """As many elements as the tensor has, the last of them missing."""
    (block,) = _entry(index).chunks
    sizes = torch.Size([2, 4]), torch.Size([1, 4])
    _entry(index).chunks = [replace(block, sizes=each) for each in sizes]


def _number_as_key(index: Any) -> None:
    index.state_dict_metadata[5] = index.state_dict_metadata.pop("a")


def _index(index: Any) -> Any:
    return index


REFUSED: dict[str, tuple[Callable[[Any], None], str]] = {
    "a file outside": (set_in(_place, relative_path="../x/__0_0.distcp"), "outside the checkpoint's folder"),
    "an absolute path": (set_in(_place, relative_path="/etc/passwd"), "outside the checkpoint's folder"),
    "a block beyond the file": (set_in(_place, offset=1 << 40), "is truncated"),
    "a negative offset": (set_in(_place, offset=-5), "damaged entry"),
    "a missing file": (
        set_in(_place, relative_path="__9_0.distcp"),
        r"its \.metadata names a file that can't be read: .*__9_0.distcp does not exist",
    ),
    "compressed values": (set_in(_place, transform_descriptors=["zstd"]), "compressed or encrypted"),
    "no places": (set_in(_index, storage_data={}), "does not say where"),
    "a bigger tensor": (set_in(_entry, size=torch.Size([5, 4])), "do not make up a tensor"),
    "a smaller tensor": (set_in(_entry, size=torch.Size([2, 4])), "lies outside the tensor"),
    "blocks that overlap": (_overlapping, "some are missing, or they overlap"),
    "no blocks": (set_in(_entry, chunks=[]), "do not make up a tensor"),
    "an odd dtype": (set_in(lambda index: _entry(index).properties, dtype=torch.nn.ReLU), "a: dtype"),
    "no table": (set_in(_index, state_dict_metadata=None), "lacks the list of tensors"),
    "a number as key": (_number_as_key, "a key that is not a string"),
    "two at one place": (set_in(_index, planner_data={"a": ("q",), "b": ("q",)}), "puts two things at q"),
    "one inside a tensor": (
        set_in(_index, planner_data={"a": ("q",), "b": ("q", "r")}),
        r"puts two things at q\.r",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save({"a": torch.ones(3, 4), "b": torch.zeros(2)}, tmp_path / "x")


@pytest.mark.parametrize("what", REFUSED)
def test_damaged_indexes_are_refused(folder: Path, what: str) -> None:
    change, message = REFUSED[what]
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
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
        with pytest.raises(CheckpointError, match=r"its \.metadata is damaged, or not copied whole: "):
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
        open_checkpoint(folder, limits=Limits.parse("--limit", [f"{cap}={value}"]))


# -- layouts of trainers -----------------------------------------------------------------------------------


def titan(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    return {
        **get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=flat),
        "train_state": {"step": torch.tensor(5)},
        "epoch": 3,
    }


def test_an_optimizer_with_a_key_of_its_own_for_each_value(tmp_path: Path) -> None:
    """All keys on top, with dots in them: the optimizer's are not the model's."""
    model = nn.Sequential(nn.Linear(3, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    content = titan(model, optimizer)
    flat = {f"optimizer.{key}": value for key, value in content.pop("optimizer").items()}
    ckpt = open_checkpoint(save({**get_model_state_dict(model), **flat}, tmp_path / "x"))
    assert list(ckpt) == ["0.weight", "0.bias"]
    assert saved_states(ckpt.wrapper)[0].layout == "flat"


def test_model_keys_on_top_are_the_state_dict(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    ckpt = open_checkpoint(save(titan(model, optimizer), tmp_path / "x"))
    assert_same_state(ckpt, dict(model.state_dict()))
    assert ckpt.objects == {}
    [saved] = saved_states(ckpt.wrapper)
    assert (saved.path, saved.layout, saved.lengths) == ("optimizer", "flat", [4])
    assert saved.groups[0].options["betas"] == (0.9, 0.999)
    assert saved.state["0.weight"].keys() == {"step", "exp_avg", "exp_avg_sq"}


def test_keys_without_a_planner_s_notes_are_told_from_an_optimizer_s(folder: Path, tmp_path: Path) -> None:
    state = {"a.w": torch.ones(2), "optim.state.a.w.exp_avg": torch.ones(2), "optim.param_groups.a.w.lr": 0.1}
    path = save(state, tmp_path / "y")
    rewrite(path, lambda index: setattr(index, "planner_data", None))
    ckpt = open_checkpoint(path)
    assert list(ckpt) == ["a.w"]
    assert [saved.path for saved in saved_states(ckpt.wrapper)] == ["optim"]


def test_options_of_any_number_and_size_are_read_in_few_reads(tmp_path: Path) -> None:
    names = [f"block_{n:04d}_" + "x" * 1000 for n in range(1200)]
    folder = save({"w": torch.ones(2), "long": names, **{f"o{n}": n for n in range(500)}}, tmp_path / "x")
    ckpt = open_checkpoint(folder, "")
    assert ckpt.objects["long"] == names
    assert all(ckpt.objects[f"o{n}"] == n for n in range(500))


def test_a_save_that_was_not_finished_is_told(folder: Path) -> None:
    (folder / ".metadata").unlink()
    with pytest.raises(CheckpointError, match=r"unfinished save .* 1 files of ranks \(__0_0\.distcp\)"):
        open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="one rank's file of a distributed checkpoint: name its folder"):
        open_checkpoint(folder / "__0_0.distcp")


# -- what is recognised whole ------------------------------------------------------------------------------


def in_blocks(folder: Path, *shapes: tuple[int, ...], ranks: int = 5) -> Path:
    """An index as several ranks leave it: of each tensor a block from each; the files have no values."""
    tensors, where, used = {}, {}, [0] * ranks
    for number, shape in enumerate(shapes):
        chunks = []
        for rank in range(ranks):
            begin = torch.Size([rank * shape[0], *[0] * len(shape[1:])])
            chunks.append(md.ChunkStorageMetadata(offsets=begin, sizes=torch.Size(shape)))
            where[md.MetadataIndex(f"t{number}", begin, rank)] = _StorageInfo(
                f"__{rank}_0.distcp", used[rank], 10 + rank
            )
            used[rank] += 10 + rank
        size = torch.Size([shape[0] * ranks, *shape[1:]])
        tensors[f"t{number}"] = md.TensorStorageMetadata(md.TensorProperties(torch.float32), size, chunks)
    folder.mkdir()
    for rank in range(ranks):
        (folder / f"__{rank}_0.distcp").write_bytes(bytes(used[rank]))
    (folder / ".metadata").write_bytes(pickle.dumps(md.Metadata(tensors, None, where)))
    return folder


SHAPES = [(2, 3), (1,), (300, 70_000), (2, 3), (1, 1, 3 << 32), (2, 3, 4, 5, 6), (128, 256)]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_that_are_recognised_whole_are_those_of_the_long_way(
    tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = in_blocks(tmp_path / "x", *SHAPES)
    index = pickle.loads((folder / ".metadata").read_bytes())
    (folder / ".metadata").write_bytes(pickle.dumps(index, protocol))
    quick = open_checkpoint(folder).contents.header.storages
    monkeypatch.setattr(dcp_format, "_records", dict)
    slow = open_checkpoint(folder).contents.header.storages
    assert quick == slow
    for number, shape in enumerate(SHAPES):
        for rank, block in enumerate(quick[f"t{number}"]):
            expected = f"{folder}/__{rank}_0.distcp", (rank * shape[0], *[0] * len(shape[1:])), shape
            assert (block.file, block.begin, block.size, block.nbytes) == (*expected, 10 + rank)


def test_records_have_a_cap_of_their_own(tmp_path: Path) -> None:
    folder = in_blocks(tmp_path / "x", *[(2, 3)] * 10)
    with pytest.raises(CheckpointError, match=r"limit exceeded: .*limit records=100\)"):
        open_checkpoint(folder, limits=Limits.parse("--limit", ["records=100"]))
    assert len(open_checkpoint(folder, limits=Limits.parse("--limit", ["pickle_opcodes=1500"]))) == 10


def test_the_state_of_a_record_can_not_be_changed_later(folder: Path) -> None:
    """A pickle of no pickler's making, which takes a block's state from the memo to put something into it."""
    stack = Machine(
        b"\x80\x04ct\nChunk\n\x94\x8c\x01a\x94\x8c\x01b\x94"
        b"h\x00)\x81\x94}\x94(h\x01K\x01h\x02K\x02ub0h\x04(h\x01K\x07u.",
        names={}, limits=Limits(), records={"t.Chunk": Records(("a", "b")).take},
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="what is not a dict"):
        stack.load()


def test_a_name_that_means_something_else_later_is_looked_up_again() -> None:
    """The memo's second place is ``a`` for the first object, and ``b`` for the next one."""
    begin = b"\x80\x04ct\nChunk\n\x94\x8c\x01a\x94\x8c\x01b\x94"
    chunk = b"h\x00)\x81\x94}\x94(h\x01K\x01h\x02K\x02ub"
    both = b"(" + chunk + b"h\x02q\x010h\x01q\x010" + chunk + b"t."
    found: list[Any] = []
    for records in ({}, {"t.Chunk": Records(("a", "b")).take}):
        stack = Machine(begin + both, names={}, limits=Limits(), records=records)
        found.append([fields(each, "a", "b") for each in stack.load()])
    assert found == [[[1, 2], [None, 2]]] * 2
