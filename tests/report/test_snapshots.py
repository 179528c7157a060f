"""Whole reports, compared to the letter with the files in ``snapshots``.

After a change of the layout, run ``CKPTCOMPAT_UPDATE_SNAPSHOTS=1 pytest tests/test_snapshots.py``, and look
at what it wrote before it is committed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_ckptcompat.core.findings import Finding, Promise, Stage, finding
from pytest_ckptcompat.report import markdown, terminal
from pytest_ckptcompat.report.report import Report

FOLDER = Path(__file__).parent / "snapshots"


class Suggested:
    """A recipe as far as a report looks at it."""

    def __init__(self, python: str, toml: str) -> None:
        self.python, self.toml = python, toml

    def __repr__(self) -> str:
        return self.python

    def to_toml(self) -> str:
        return self.toml


def stages(**outcomes: str) -> list[Stage]:
    """``compare="failed: 61 of 63 keys match"``, in the order given."""
    split = {name.replace("_", "-"): outcome.partition(": ") for name, outcome in outcomes.items()}
    return [Stage(name, status, detail) for name, (status, _, detail) in split.items()]  # type: ignore[arg-type]


SKIPPED = "skipped: the checkpoint does not fit as it is"

ONET = Report(
    "net.pth",
    "onet.Net",
    mismatched=[("out2.weight", (4, 256), (14, 256)), ("out2.bias", (4,), (14,))],
    matched=61,
    total=63,
    findings=[
        finding("shape-mismatch", "out2.weight", "(4, 256) f32", "(14, 256) f32"),
        finding("shape-mismatch", "out2.bias", "(4,) f32", "(14,) f32"),
    ],
    stages=stages(
        open="passed: torch-zip, 63 tensors, 1.8 MB",
        recipe="skipped: none declared",
        compare="failed: 61 of 63 keys match",
        load=SKIPPED,
        verify=SKIPPED,
        forward=SKIPPED,
        optimizer=SKIPPED,
    ),
    suggestion=Suggested(
        'Recipe(tile("out2.*", dim=0))', '[[recipe]]\nop = "tile"\nkey = "out2.*"\ndim = 0\n'
    ),  # type: ignore[arg-type]
)

GROWN = Report(
    "net.pth",
    "onet.Net",
    matched=63,
    total=63,
    promises=[
        Promise("untouched", "kept", "61 keys are bit-equal"),
        Promise("rows kept", "kept", "out2.weight, out2.bias: the first 4 of 14 rows"),
        Promise("function kept", "kept", "3 batches, eval and train mode: largest difference 1.9e-06"),
        Promise("reproducible", "kept", "twice the same bytes"),
    ],
    stages=stages(
        open="passed: torch-zip, 63 tensors, 1.8 MB",
        recipe="passed: 2 keys of 63",
        compare="passed: 63 of 63 keys match",
        load="passed: strictly, on the CPU",
        verify="passed: 4 of 4 promises kept",
        forward="passed: on cpu: (2, 1), (2, 14)",
        forward_cuda="rehearsed: on cuda:0, without a card: (2, 1), (2, 14)",
        optimizer="skipped: none declared",
    ),
    recipe=True,
)

OUTGROWN_SKIPS = "skipped: the checkpoint does not fit after the recipe"
OUTGROWN = Report(
    "net.pth",
    "onet.Net",
    mismatched=[("out2.weight", (14, 256), (20, 256)), ("out2.bias", (14,), (20,))],
    matched=61,
    total=63,
    findings=[
        finding("shape-mismatch", "out2.weight", "(14, 256) f32", "(20, 256) f32"),
        finding("shape-mismatch", "out2.bias", "(14,) f32", "(20,) f32"),
    ],
    stages=stages(
        open="passed: torch-zip, 63 tensors, 1.8 MB",
        recipe="passed: changes 2 of 63 keys",
        compare="failed: 61 of 63 keys match",
        load=OUTGROWN_SKIPS,
        verify=OUTGROWN_SKIPS,
        forward=OUTGROWN_SKIPS,
        optimizer=OUTGROWN_SKIPS,
    ),
    recipe=True,
)

LAYERS = [i for i in range(32) if i != 17]
LLAMA = Report(
    "llama.safetensors",
    "models.llama.LlamaForCausalLM",
    missing=[f"model.layers.{i}.post_attention_layernorm.weight" for i in range(32)],
    unexpected=[f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(32)] + ["aux.weight"],
    mismatched=[
        (f"model.layers.{i}.self_attn.{p}_proj.weight", (4096, 4096), (1024, 4096))
        for i in LAYERS
        for p in "kv"
    ],
    matched=198,
    total=325,
    findings=[
        *(
            finding(
                "shape-mismatch",
                f"model.layers.{i}.self_attn.{p}_proj.weight",
                "(4096, 4096) bf16",
                "(1024, 4096) bf16",
            )
            for i in LAYERS
            for p in "kv"
        ),
        *(
            finding("missing-key", f"model.layers.{i}.post_attention_layernorm.weight", "", "(4096,) bf16")
            for i in range(32)
        ),
        *(
            finding("unexpected-key", f"model.layers.{i}.self_attn.rotary_emb.inv_freq", "(64,) f32")
            for i in range(32)
        ),
        Finding(
            "unexpected-key", "off", "aux.weight", "(10, 4096) f32", "", "waived: aux head dropped in v2"
        ),
        finding("dtype-mismatch", "model.norm.weight", "(4096,) f32", "(4096,) bf16"),
        finding(
            "non-finite-value",
            "model.embed_tokens.weight",
            "(32000, 4096) bf16",
            "",
            "3 of 131072000 values are NaN",
        ),
        finding(
            "unsafe-pickle",
            message="it asks for numpy.core.multiarray.scalar, which torch.load(weights_only=True) refuses",
        ),
    ],
    stages=ONET.stages,
)

HOSTILE = Report(
    r"\x3a:error::net.pth",
    "m.Net",
    missing=["\x1b[2J"],
    matched=1,
    total=12,
    findings=[
        finding("missing-key", key, "", "(1,) f32")
        for key in (
            "\x1b[2J\x1b[31mred",
            "two\nlines",
            "::error file=x::boom",
            "##[group]boom",
            "\u202egnp.exe",
            "<script>alert(1)</script>",
            "a|b`c`",
            "日本語.weight",
            "e\u0301.weight",
            " spaces ",
            "layers.{0-3}.weight",
            "an … of its own",
            "\ud800",
            f"encoder.{'x' * 5000}.weight",
            f"encoder.{'x' * 2500}y{'x' * 2499}.weight",
        )
    ]
    + [finding("load-error", message="first line\n::error::second \x1b[31mline\u202e")],
    stages=stages(open="passed: torch-zip"),
)

REPORTS = {"onet": ONET, "grown": GROWN, "outgrown": OUTGROWN, "llama": LLAMA, "hostile": HOSTILE}


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", list(REPORTS))
def test_terminal(name: str, width: int) -> None:
    compare(terminal.render(REPORTS[name], width), f"{name}-{width}.txt")


@pytest.mark.parametrize("name", ["llama", "hostile"])
def test_terminal_in_full(name: str) -> None:
    compare(terminal.render(REPORTS[name], 80, 2), f"{name}-80-vv.txt")


@pytest.mark.parametrize("name", list(REPORTS))
def test_markdown(name: str) -> None:
    compare(markdown.render(REPORTS[name], "tests/test_net.py::test_old_weights[net.pth]"), f"{name}.md")


def compare(text: str, name: str) -> None:
    path = FOLDER / name
    if os.environ.get("CKPTCOMPAT_UPDATE_SNAPSHOTS"):
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")
