from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch
from rehearsal_zoo import ZOO
from torch import nn

from pytest_ckptcompat.core.errors import ModelError
from pytest_ckptcompat.core.imports import importable
from pytest_ckptcompat.models.blueprint import blueprint


def table(model):
    return {
        name: (tensor.shape, tensor.dtype, tensor.stride(), tensor.requires_grad)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


@pytest.mark.parametrize("name", ZOO)
def test_a_schema_is_the_model_without_its_values(name):
    plan = blueprint(ZOO[name].kind)
    schema = plan.schema()
    assert table(schema) == table(plan.build())
    assert all(tensor.is_meta for tensor in (*schema.parameters(), *schema.buffers()))


@pytest.mark.parametrize(
    "fill",
    [
        lambda weight: nn.init.normal_(weight, std=-1.0),
        lambda weight: nn.init.normal_(weight.long()),
        lambda weight: weight.data.exponential_(-1.0),
        lambda weight: weight.data.clamp_(),
        lambda weight: weight.clamp_(0, 1),
        lambda weight: weight.long().erfinv_(),
    ],
)
def test_an_initialiser_that_raises_raises_on_meta_too(fill):
    def model():
        linear = nn.Linear(2, 2)
        fill(linear.weight)
        return linear

    with pytest.raises(RuntimeError) as usual:
        model()
    with pytest.raises(ModelError) as told:
        blueprint(model).schema()
    assert str(usual.value) in str(told.value)


def test_bounds_that_are_tensors():
    def model():
        linear = nn.Linear(2, 2)
        linear.weight.data.clamp_(min=torch.zeros(2))
        return linear

    assert blueprint(model).schema().weight.is_meta


SHAPES_ONLY = """
import sys, torch
from torch import nn
from pytest_ckptcompat import check

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.linear = nn.Embedding(5, 4), nn.Linear(4, 4)
        nn.init.xavier_normal_(self.linear.weight)
        nn.init.trunc_normal_(self.embed.weight, std=0.02)
        nn.init.kaiming_normal_(self.linear.weight)

torch.save(Net().state_dict(), sys.argv[1])
assert check(Net, sys.argv[1], device="none").ok
print(*[name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules])
"""


def test_shapes_alone_need_no_compiler(tmp_path):
    """It takes longer to import than torch itself, and meta tensors have no values to fill in."""
    command = [sys.executable, "-c", SHAPES_ONLY, str(tmp_path / "net.pth")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


class Sized(nn.Module):
    def __init__(self, width, depth):
        super().__init__()


def test_a_model_that_wants_arguments_is_told_what_to_name_instead():
    for make in (Sized, lambda width: Sized(width, 1)):
        with pytest.raises(
            ModelError, match=r"missing .* 'width'.*; name a function that takes no arguments"
        ):
            blueprint(make).build()
    with pytest.raises(ModelError, match="missing 2 required positional arguments") as error:
        blueprint(lambda: Sized()).build()  # takes none, and is wrong within
    assert "name a function" not in str(error.value)


def test_where_a_module_was_looked_for(tmp_path, monkeypatch):
    (tmp_path / "gates").mkdir()
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "gates"), "", *sys.path])
    with pytest.raises(ModelError) as error:
        blueprint("shopp.lit:Net")
    told = str(error.value)
    assert told.startswith("shopp.lit:Net: there is no module 'shopp' in gates, .")
    assert told.endswith("did you mean 'shop'?")
    with pytest.raises(ModelError, match="and none is installed: install its package, or add its folder"):
        blueprint("unlike_any.lit:Net")
    assert "site-packages" not in told
    assert told.isprintable()
    with pytest.raises(ModelError, match=r"^shop\.lit:Net: there is no module 'shop\.lit' in shop$"):
        blueprint("shop.lit:Net")
    sys.modules.pop("shop")


def test_a_module_in_the_folder_src_is_found_for_the_user(tmp_path, monkeypatch):
    (tmp_path / "src" / "absent_package").mkdir(parents=True)
    (tmp_path / "src" / "absent_package" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelError, match=r"but there is one in src: install the project .* or add src to PYTHONPATH"
    ):
        blueprint("absent_package.model:Net")
    monkeypatch.syspath_prepend(tmp_path / "src")
    with pytest.raises(ModelError, match="did you mean 'absent_package'"):
        blueprint("absent_pakcage:Net")


def test_faults_of_a_users_module_are_placed_in_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "unfinished.py").write_text("import torch\ndef Net(:\n")
    with pytest.raises(ModelError, match=r"SyntaxError: invalid syntax \(unfinished\.py, line 2\)$"):
        blueprint("unfinished:Net")
    (tmp_path / "lazy.py").write_text("import importlib\n\nimportlib.import_module('unfinished')\n")
    with pytest.raises(ModelError, match=r"SyntaxError: invalid syntax \(unfinished\.py, line 2\)$"):
        blueprint("lazy:Net")
    (tmp_path / "lazy2.py").write_text("import importlib\n\nimportlib.import_module('nowhere_at_all')\n")
    with pytest.raises(ModelError, match=r"No module named 'nowhere_at_all' \(lazy2\.py:3\)$"):
        blueprint("lazy2:Net")


@pytest.mark.parametrize("name", ["orthogonal", "spectral_norm", "weight_norm"])
def test_parameters_that_a_constructor_makes_of_values_are_in_the_schema(name):
    """torch's parametrizations go on where an operation is missing on meta, and leave parameters out."""

    def model():
        return nn.Sequential(nn.Linear(4, 8), getattr(nn.utils.parametrizations, name)(nn.Linear(8, 4)))

    real, schema = model().state_dict(), blueprint(model).schema().state_dict()
    assert {key: value.shape for key, value in schema.items()} == {k: v.shape for k, v in real.items()}
    assert all(value.is_meta for value in schema.values())


def _factory(width, depth=2):
    return nn.Linear(width, depth)


def test_arguments_reach_the_callable():
    assert blueprint(_factory, {"width": 3}).schema().weight.shape == (2, 3)
    assert blueprint(_factory, {"width": 3}).name.endswith("_factory")
    assert blueprint(lambda **more: nn.Linear(*more.values()), {"a": 1, "b": 2}).build().weight.shape == (
        2,
        1,
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"widht": 3}, r"does not take 'widht' of model_args: did you mean 'width'\?"),
        ({"width": 3, "heads": 1, "x": 2}, "does not take 'heads', 'x' of model_args: it takes width, depth"),
    ],
)
def test_arguments_that_the_callable_does_not_take(arguments, told):
    with pytest.raises(ModelError, match=told):
        blueprint(_factory, arguments)


def test_arguments_for_a_module_that_is_built():
    with pytest.raises(ModelError, match="built already"):
        blueprint(nn.Linear(1, 1), {"bias": False})


def test_names_by_which_another_process_finds_a_callable():
    assert importable("onet:Net") == "onet:Net"
    assert importable(_factory) == f"{__name__}:_factory"
    assert importable(nn.Linear) == "torch.nn.modules.linear:Linear"
    assert importable(nn.Sequential(nn.ReLU())) == ""
    assert importable(lambda: None) == ""
    assert importable(functools.partial(_factory, 3)) == ""
