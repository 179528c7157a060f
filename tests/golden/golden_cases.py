"""What is asked of pytest, of the command and of the operators, beside the pairs of ``pairs.toml``."""

from __future__ import annotations

Shapes = dict[str, tuple[int, ...]]

# -- pytest --------------------------------------------------------------------------------------------------

TEST_FILES = {
    "test_marked.py": '''
import pytest

from golden_models import Grown, Net
from pytest_ckptcompat import Recipe, allow, tile


@pytest.mark.ckpt_compat(model=Net)
def test_any(): ...


@pytest.mark.ckpt_compat(model=Grown, recipe=Recipe(tile("head.*", dim=0)), inputs="2x6:int64<5")
def test_fixtures(ckpt, ckpt_path, ckpt_model, ckpt_report):
    assert ckpt["head.weight"].shape == (4, 8)
    assert ckpt_model.head.out_features == 10
    assert ckpt_report.ok


@pytest.mark.ckpt_compat(model=Net, ckpt=["net.pth", "aux.pth"])
def test_own_list(): ...


@pytest.mark.ckpt_compat(model=Net, ckpt="aux.pth", allow=allow("unexpected-key", "aux.*", reason="dropped"))
def test_waived(): ...


def test_callable(ckpt_check):
    assert ckpt_check(Net, "net.pth").ok


def test_unread(ckpt_check):
    ckpt_check(Net, "aux.pth")


def test_path_alone(ckpt_path):
    assert ckpt_path
''',
    "test_slips.py": '''
import pytest

from golden_models import Net


@pytest.mark.ckpt_compat(model=Net, recipies="x.toml")
def test_unknown_keyword(): ...
''',
    "test_unmarked.py": '''
def test_no_marker(ckpt_report): ...


def test_wrong_device(ckpt_check):
    ckpt_check("golden_models:Net", "net.pth", device="tpu")


def test_none(ckpt_check):
    ckpt_check("golden_models:Net", None)
''',
}  # fmt: skip

RUNS = [
    ["test_marked.py"],
    ["test_marked.py", "-rA", "--ckpt", "net.pth"],
    ["test_marked.py", "-v", "--ckpt", "net.pth", "--ckpt", "shards"],
    ["test_marked.py", "--ckpt-required"],
    ["test_marked.py", "-k", "any", "--ckpt", "net.pth", "--ckpt-require-cuda"],
    ["test_marked.py", "--ckpt", "net.pth", "--ckpt-device", "none", "--ckpt-require-cuda", "-k", "fixtures"],
    ["test_marked.py", "--ckpt", "absent.pth"],
    ["test_marked.py", "--ckpt", "text.pth"],
    ["test_marked.py", "--ckpt", ""],
    ["test_marked.py", "--ckpt-device", "tpu"],
    ["test_marked.py", "--ckpt-report", "pdf:x"],
    ["test_marked.py", "--ckpt-report", "json:nothing"],
    ["test_slips.py"],
    ["test_unmarked.py", "--ckpt", "net.pth"],
    ["test_marked.py", "--collect-only", "-q", "--ckpt", "*.safetensors"],
    ["test_marked.py", "-q", "-k", "any", "--ckpt", "net.pth", "-o", "ckpt_severity=unexpected-key=warn"],
    ["test_marked.py", "-q", "-k", "own_list", "-o", "ckpt_severity=unexpected-key=warn"],
]

WRONG_TABLES = """[[check]]
name = "unknown key"
ckpt = "net.pth"
modle = "golden_models:Net"
---
[check]
ckpt = "net.pth"
---
[[check]]
ckpt = "net.pth"
model = "Net"
---
[[check]]
ckpt = "net.pth"
model = "golden_models:Net"
  [[check.recipe]]
  op = "tyle"
  key = "head.*"
---
[[check]]
ckpt = "net.pth"
model = "golden_models:Net"
  [[check.allow]]
  rule = "unexpected-kee"
  reason = "none"
---
[[check]]
name = "a"
model = "golden_models:Net"
[[check]]
name = "a"
model = "golden_models:Net"
---
[[check]]
name = "a
"""

WRONG_INI = """[pytest]
ckpt_severity = missing-kee=warn
---
[pytest]
ckpt_severity = missing-key=maybe
---
[pytest]
ckpt_limits = tensors=lots
---
[pytest]
ckpt_device = gpu
"""

# -- the command -----------------------------------------------------------------------------------------------

SHOWN = "net.pth net.safetensors legacy.pth shards shards/model.safetensors.index.json net.ckpt.json adam.pth"
SHOWN += " encoder.pth words.pth views.pth hostile.pth empty.pth unsafe.pth half.pth"

UNREADABLE = (
    "absent.pth nothing zero.pth text.pth page.pth pointer.pth truncated.pth cut.safetensors object.json"
)

CONTRASTED = [
    ("grown.pth", "net.pth"),
    ("net.pth", "net.safetensors"),
    ("encoder.pth", "net.pth"),
    ("double.pth", "aux.pth"),
    ("net.pth", "net.ckpt.json"),
    ("net.pth", "absent.pth"),
]

WRONG = [
    ["check", "net.pth", "golden_models"],
    ["check", "net.pth", "golden_models:Absent"],
    ["check", "absent.pth", "golden_models:Net"],
    ["check", "net.pth", "golden_models:Net", "--inputs", "2x"],
    ["check", "net.pth", "golden_models:Net", "--inputs", "x=2x6", "--inputs", "2x6"],
    ["check", "net.pth", "golden_models:Net", "--inputs", "y=2x6:int64<5"],
    ["check", "net.pth", "golden_models:Net", "--device", "tpu"],
    ["check", "net.pth", "golden_models:Net", "--optimizer", "adam"],
    ["check", "net.pth", "golden_models:Net", "--recipe", "absent.toml"],
    ["check", "net.pth", "golden_models:Net", "--recipe", "net.pth"],
    ["check", "two.pth", "golden_models:Net", "--key", "absent"],
    ["lock", "net.pth", "-o", "nowhere/net.json"],
    ["lock", "golden_models:Broken", "-o", "broken.json"],
    ["apply", "net.pth", "golden_models:Grown", "--recipe", "absent.toml", "-o", "x.pth"],
]

# -- operators: the step, the shapes it is given, and those of the model -------------------------------------------

LAYER = {"fc.weight": (4, 6), "fc.bias": (4,)}
MORE = {"fc.weight": (9, 6), "fc.bias": (9,)}
BLOCKS = {f"layers.{i}.{key}.weight": (3, 3) for i in range(2) for key in "ab"}
HIDDEN = {"one.weight": (4, 5), "one.bias": (4,), "bn.weight": (4,), "bn.bias": (4,), "two.weight": (3, 4)}
WIDER = {"one.weight": (8, 5), "one.bias": (8,), "bn.weight": (8,), "bn.bias": (8,), "two.weight": (3, 8)}

# fmt: off
OPERATORS: list[tuple[str, Shapes, Shapes]] = [
    ('rename("fc.*", "head.*")', LAYER, {"head.weight": (4, 6), "head.bias": (4,)}),
    ('strip_prefix("module.")', {f"module.{key}": shape for key, shape in LAYER.items()}, LAYER),
    ('add_prefix("net.")', LAYER, {f"net.{key}": shape for key, shape in LAYER.items()}),
    ('drop("fc.bias")', LAYER, {"fc.weight": (4, 6)}),
    ('tile("fc.*", dim=0)', LAYER, MORE),
    ('tile("fc.weight", dim=-1, to=13, optim="reset")', LAYER, {"fc.weight": (4, 13), "fc.bias": (4,)}),
    *((f'append("fc.*", dim=0, init="{init}")', LAYER, MORE) for init in ("zeros", "mean")),
    ('append("fc.weight", dim=1, n=2, init="constant", value=0.5)', LAYER, {"fc.weight": (4, 8), "fc.bias": (4,)}),
    ('select("fc.*", dim=0, index=[3, 1, 1])', LAYER, {"fc.weight": (3, 6), "fc.bias": (3,)}),
    ('select("fc.*", dim=0, old_names=list("abcd"), new_names=["d", "x", "a"], missing="zeros")', LAYER, {"fc.weight": (3, 6), "fc.bias": (3,)}),
    ('pad("conv.weight")', {"conv.weight": (3, 2, 3, 3)}, {"conv.weight": (3, 2, 5, 7)}),
    ('pad("conv.weight", sizes=[1, 0, 0, 2])', {"conv.weight": (3, 2, 3, 3)}, {"conv.weight": (3, 2, 4, 5)}),
    ('scale("fc.*", 0.5)', LAYER, LAYER),
    ('scale("fc.weight", [1, 2, 3, 4], dim=0, optim="copy")', LAYER, LAYER),
    ('reduce("k.weight", dim=0, groups=2, optim="copy")', {"k.weight": (8, 3)}, {"k.weight": (4, 3)}),
    ('reduce("k.weight", dim=1, groups=3, op="sum")', {"k.weight": (4, 6)}, {"k.weight": (4, 2)}),
    ('repeat_channels("conv.weight")', {"conv.weight": (4, 2, 2, 2)}, {"conv.weight": (4, 4, 2, 2)}),
    ('concat(["q", "k", "v"], "qkv", dim=0)', {"q": (2, 3), "k": (4, 3), "v": (1, 3)}, {"qkv": (7, 3)}),
    ('split("qkv", ["q", "k", "v"], dim=0)', {"qkv": (6, 3)}, {"q": (2, 3), "k": (2, 3), "v": (2, 3)}),
    ('permute("w", [2, 0, 1])', {"w": (2, 3, 4)}, {"w": (4, 2, 3)}),
    ('transpose("w")', {"w": (2, 3)}, {"w": (3, 2)}),
    ('resample("pos", size=[4, 4], prefix_tokens=1, mode="nearest")', {"pos": (1, 5, 3)}, {"pos": (1, 17, 3)}),
    ('inflate("conv", time=4)', {"conv": (2, 3, 2, 2)}, {"conv": (2, 3, 4, 2, 2)}),
    ('inflate("conv", time=3, mode="centre", optim="copy")', {"conv": (2, 3, 2, 2)}, {"conv": (2, 3, 3, 2, 2)}),
    *((f'widen("one", ["two"], norms=["bn"], to=8, split="{split}")', HIDDEN, WIDER) for split in ("equal", "zero")),
    ('insert_block("layers.1", at=1, zero=["b.*"], optim="copy")', BLOCKS, {f"layers.{i}.{key}.weight": (3, 3) for i in range(3) for key in "ab"}),
    ('stack("layers", times=2)', BLOCKS, {f"layers.{i}.{key}.weight": (3, 3) for i in range(4) for key in "ab"}),
    ('cast("fc.*", "float16")', LAYER, LAYER),
    ('custom("golden_models:double", touches=["head.*"])', {"head.weight": (2, 3)}, {"head.weight": (2, 3)}),
    ('tie(["fc.weight", "head.weight"])', {**LAYER, "head.weight": (4, 6)}, {**LAYER, "head.weight": (4, 6)}),
]
