"""Find the file that holds the weights in a folder that a library wrote.

The layout is recognised by the names in the folder and by small text files that point to the latest
checkpoint. Layouts are taken from the documentation and code of transformers, diffusers, accelerate, PEFT,
DeepSpeed, Megatron-LM and Llama.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.core.escape import escape, listed
from pytest_ckptcompat.core.keys import natural
from pytest_ckptcompat.core.redaction import is_url

from .folders import names_in
from .paths import inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .files import Files


class Found(NamedTuple):
    """The files or inner folder with the weights in a folder.

    Attributes:
        names: the name of the file or inner folder, or the names of all shards if they have no index.
        optimizer: the name of the file with the optimizer state, or ``""``.
    """

    names: tuple[str, ...]
    optimizer: str = ""


class Folder:
    """A folder whose names are read once.

    Attributes:
        path: the path of the folder.
        names: the names in the folder, in natural order.
    """

    def __init__(self, path: str, files: Files) -> None:
        self.path = path
        self.names = sorted(names_in(path), key=natural)
        self._files = files

    def matching(self, pattern: str) -> list[str]:
        """Return the names that a regular expression matches completely."""
        known = re.compile(pattern, re.DOTALL)
        return [name for name in self.names if known.fullmatch(name)]

    def models(self) -> list[str]:
        """Return the folders inside that `save_pretrained` may have written."""
        found = []
        for name in [name for name in self.names if "." not in name][:_MOST_FOLDERS]:
            with suppress(CheckpointError):  # raised for a file
                if any(map(_PRETRAINED.fullmatch, names_in(inside(self.path, name)))):
                    found.append(name)
        return found

    def text(self, name: str) -> str:
        """Return the content of a small text file, or ``""`` if it can't be read as text."""
        if name not in self.names:
            return ""
        try:
            with self._files.open(inside(self.path, name)) as file:
                return file.read_at(0, min(file.size, _LONGEST_LINE)).decode().strip()
        except (CheckpointError, UnicodeDecodeError):
            return ""


def find(path: str, files: Files) -> Found | None:
    """Find what holds the weights in a folder, or return None if the layout is not known.

    Raises:
        CheckpointError: there are several checkpoints, or only parts of a model. The message lists them and
            says what to do.
    """
    folder = Folder(path, files)
    optimizer = next((name for name in _OPTIMIZERS if name in folder.names), "")
    for layout in _LAYOUTS:
        if names := layout(folder):
            return Found(tuple(names), optimizer)
    return None


def part_of(path: str) -> str:
    """Return which of several files with a model's weights a file is, judging by its name, or ``""``."""
    name = path.replace("\\", "/").rpartition("/")[2]
    if (shard := _SHARD.fullmatch(name)) and int(shard[2]) > 1:
        return f"shard {int(shard[1])} of {int(shard[2])}: name its folder for all of them"
    if (part := _LLAMA.fullmatch(name)) and not is_url(path):
        other = "01" if int(part[1]) == 0 else "00"
        if Path(path).with_name(f"consolidated.{other}.{part[2]}").exists():
            return "one of several model-parallel parts"
    return ""


def optimizer_beside(path: str) -> str | None:
    """Return the path of the optimizer state that a trainer wrote beside a checkpoint, or None."""
    if is_url(path):
        return None
    place = Path(path)
    folders = [place, place.parent] if place.is_dir() else [place.parent]
    # accelerate writes a folder with FSDP
    found = (folder / name for folder in folders for name in (*_OPTIMIZERS, "optimizer.ckpt", "optimizer_0"))
    return next((str(each) for each in found if each.is_file() or (each / ".metadata").is_file()), None)


_SHARD = re.compile(r".+-(\d{5})-of-(\d{5})\.(?:safetensors|bin|pt|pth)", re.DOTALL)
_LLAMA = re.compile(r"consolidated\.(\d\d)\.(pth|pt|safetensors)")
_LONGEST_LINE = 256
_MOST_FOLDERS = 64
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer.pth")
_SUFFIXES = r"\.(pth|pt|ckpt|safetensors|bin|pth\.tar)"
_TRAINING = (
    r"(optimizer|optim|scheduler|lr_scheduler|scaler|sampler|rng_state|random_states?|training_args|training_state)"
    r"([_.-].*)?"
)
_PRETRAINED = re.compile(
    r"(?P<kind>model|pytorch_model|diffusion_pytorch_model|adapter_model)(?P<before>\.\w+)?"
    r"\.(?P<type>safetensors|bin)(?P<index>\.index(?P<after>\.[\w-]+)?\.json)?"
)


def _pretrained(folder: Folder) -> Iterable[str]:
    """Find files of ``save_pretrained``, Trainer, accelerate, PEFT and diffusers, with their precedence."""
    found = [match for name in folder.names if (match := _PRETRAINED.fullmatch(name))]
    best: dict[str, list[tuple[tuple[bool, bool, bool], str]]] = {}
    for match in found:
        rank = (bool(match["before"] or match["after"]), match["type"] == "bin", bool(match["index"]))
        best.setdefault(match["kind"].replace("pytorch_model", "model"), []).append((rank, match[0]))
    first = {kind: min(ranked)[0] for kind, ranked in best.items()}
    chosen = [name for kind, ranked in best.items() for rank, name in ranked if rank == first[kind]]
    further = folder.matching(r"(pytorch_)?model_\d+\.(safetensors|bin)")  # accelerate with several models
    if len(chosen) + len(further) > 1:
        raise _several([*chosen, *further])
    return chosen


def _indexed(folder: Folder) -> Iterable[str]:
    """Find the index of shards. If there is one for each format, prefer safetensors."""
    found = folder.matching(r".*\.index(\.[\w-]+)?\.json")
    preferred = [name for name in found if "safetensors" in name] or found
    preferred = [name for name in preferred if name.endswith(".index.json")] or preferred
    if len(preferred) > 1:
        names = ", ".join(escape(name, 80) for name in preferred[:8])
        raise CheckpointError(f"the folder holds {len(preferred)} sharded checkpoints, name one: {names}")
    return preferred


def _deepspeed(folder: Folder) -> Iterable[str]:
    """Find the folder that ``latest`` names. DeepSpeed writes one folder for each step."""
    if states := folder.matching(r"mp_rank_\d+_model_states\.pt"):
        return _one_of_parts(
            states,
            "tensor-parallel parts of a DeepSpeed checkpoint",
            "Merge them with ds_to_universal.py of DeepSpeed",
        )
    if folder.matching(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt"):
        raise CheckpointError(
            "it is a checkpoint of DeepSpeed's ZeRO stage 3: its parameters are partitioned across the files "
            "of all ranks. Run 'python zero_to_fp32.py . OUTPUT' in the folder above, and open what it writes"
        )
    if layers := folder.matching(r"layer_\d+-model_\d+-model_states\.pt"):
        raise CheckpointError(
            f"it holds the layers of a DeepSpeed pipeline, each by itself ({_listed(layers)}): convert them "
            "with ds_to_universal.py of DeepSpeed, or name one of them"
        )
    latest = folder.text("latest")
    if latest in folder.names:
        return [latest]
    return folder.matching(r"pytorch_model(_\d+)?") if "zero_to_fp32.py" not in folder.names else []


def _megatron(folder: Folder) -> Iterable[str]:
    """Find the folder of the latest iteration, or the file of the only rank in such a folder."""
    latest = folder.text("latest_checkpointed_iteration.txt")
    for name in (latest, f"iter_{latest:0>7}") if latest else ():
        if name in folder.names:
            return [name]
    if ranks := folder.matching(r"mp_rank_\d+(_\d+)*"):
        what = "model-parallel parts of a Megatron checkpoint"
        (rank,) = _one_of_parts(ranks, what, "Merge them with tools/checkpoint/convert.py of Megatron-LM")
        return [f"{rank}/model_optim_rng.pt"]
    return []


def _llama(folder: Folder) -> Iterable[str]:
    """Find ``consolidated.00.pth``. If there are several, each holds only slices of the tensors."""
    return _one_of_parts(
        folder.matching(r"consolidated(\.\d+)?\.(pth|pt|safetensors)"),
        "model-parallel parts of one model, as Llama is released",
        "Convert them with transformers' convert_llama_weights_to_hf, or name one of them",
    )


def _shards(folder: Folder) -> Iterable[str]:
    """Find all shards of a checkpoint whose index is missing."""
    found = folder.matching(r".*-\d{5}-of-\d{5}\.(safetensors|bin)")
    totals = {name.rpartition("-of-")[2] for name in found}
    if len(totals) > 1:
        raise _several(found)
    wanted = int(next(iter(totals)).partition(".")[0]) if totals else 0
    if len(found) < wanted:
        raise CheckpointError(
            f"it holds {len(found)} of {wanted} shards, and no index of them: {_listed(found)}. Copy the rest"
        )
    return found


def _pipeline(folder: Folder) -> Iterable[str]:
    """Refuse a pipeline of diffusers, which has a folder for each of its models."""
    if "model_index.json" in folder.names:
        parts = _listed(folder.models())
        raise CheckpointError(
            f"it is a pipeline of diffusers, with a folder for each model: name one of {parts}"
        )
    return []


def _steps(folder: Folder) -> Iterable[str]:
    """Find the only folder of a step or epoch."""
    found = folder.matching(r"(checkpoint|ckpt|step|epoch|iter|global_?step)[-_]?\d+")
    return _one(found[::-1] or folder.matching("checkpoints"))


_LAYOUTS: tuple[Callable[[Folder], Iterable[str]], ...] = (
    _pretrained,
    _indexed,
    _deepspeed,
    lambda folder: _one(folder.matching(r"pytorch_model_fsdp_\d+")),  # accelerate's distributed checkpoint
    _megatron,
    _llama,
    _shards,
    _pipeline,
    lambda folder: _one(folder.matching(rf"(?!{_TRAINING}{_SUFFIXES}$).+{_SUFFIXES}")),
    _steps,
    lambda folder: _one(folder.models()),  # diffusers' training scripts write a folder for each model
)
"""The layouts in the order in which they are tried."""


def _one(names: list[str]) -> list[str]:
    if len(names) > 1:
        raise _several(names)
    return names


def _one_of_parts(names: list[str], what: str, remedy: str) -> list[str]:
    if len(names) > 1:
        raise CheckpointError(f"it holds {len(names)} {what}: {_listed(names)}. {remedy}")
    return names


def _several(names: list[str]) -> CheckpointError:
    return CheckpointError(f"it holds {len(names)} checkpoints: {_listed(names)}. Name one of them")


def _listed(names: list[str]) -> str:
    return listed([escape(name, 80) for name in names], 8)
