"""Real reports against the schema that is published for them, closed: what is written must be described."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest
import torch
from networks import Boxes, Grown

from pytest_ckptcompat import Recipe, allow, check, tile
from pytest_ckptcompat.cli import main
from pytest_ckptcompat.core.rules import RULES
from pytest_ckptcompat.report.facts import SCHEMA_VERSION

jsonschema = pytest.importorskip("jsonschema")

SCHEMA: dict[str, Any] = json.loads((files("pytest_ckptcompat") / "report.schema.json").read_text())
GROW = Recipe(tile("out2.*", dim=0))
IMAGES = (2, 3, 8, 8)


def validate(content: Any, kind: str) -> None:
    jsonschema.validate(content, {**SCHEMA, "oneOf": [{"$ref": f"#/$defs/{kind}"}]})
    undescribed(content, SCHEMA["$defs"][kind])


def undescribed(content: Any, schema: dict[str, Any]) -> None:
    """No property is written that the schema, which leaves room for further ones, does not describe."""
    parts = [
        SCHEMA["$defs"][each["$ref"].rpartition("/")[2]] if "$ref" in each else each
        for each in parts_of(schema)
    ]
    if isinstance(content, dict):
        described = {name: each for part in parts for name, each in part.get("properties", {}).items()}
        assert content.keys() <= described.keys()
        for name, value in content.items():
            undescribed(value, described[name])
    elif isinstance(content, list):
        for value in content:
            undescribed(value, next(part["items"] for part in parts if "items" in part))


def parts_of(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        part for word in ("allOf", "anyOf") for each in schema.get(word, []) for part in parts_of(each)
    ] or [schema]


@pytest.fixture
def net(tmp_path: Any) -> Any:
    torch.manual_seed(0)
    torch.save(Boxes().state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


def test_the_schema_is_one_and_names_its_version() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    versions = {SCHEMA["$defs"][kind]["properties"]["schema_version"]["const"] for kind in ("run", "report")}
    assert versions == {SCHEMA_VERSION}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"recipe": GROW, "inputs": IMAGES, "source_model": Boxes, "optimizer": torch.optim.Adam},
        {"recipe": GROW, "inputs": IMAGES, "device": "rehearse", "direction": "full"},
        {"recipe": Recipe(tile("nothing.*", dim=0))},
        {
            "allow": [
                allow("shape-mismatch", "out2.*", reason="it grew"),
                allow("missing-key", "aux", reason="?"),
            ]
        },
    ],
    ids=["broken", "grown", "rehearsed", "recipe", "waived"],
)
def test_reports_are_as_described(given: dict[str, Any], net: Any) -> None:
    report = check(Grown, net, **given)
    validate(json.loads(report.to_json()), "report")


def test_what_could_not_be_read_or_built_is_as_described(net: Any) -> None:
    validate(json.loads(check(Grown, net.parent / "none.pth").to_json()), "report")
    validate(json.loads(check("nowhere:Net", net).to_json()), "report")


def test_the_command_prints_one_and_a_run_writes_several(project: Any, capsys: Any) -> None:
    project.makepyfile(
        """
        import pytest
        from nets import V1, V2

        @pytest.mark.ckpt_compat(model=V2, ckpt="v1.pth")
        def test_grown(): ...

        @pytest.mark.ckpt_compat(model=V1, ckpt=["v1.pth", "none.pth"], inputs=(2, 6))
        def test_same(): ...
        """
    )
    project.runpytest("--ckpt-report=json:run.json")
    run = json.loads((project.path / "run.json").read_text())
    assert len(run["checks"]) == 3
    validate(run, "run")
    capsys.readouterr()
    assert main(["check", "v1.pth", "nets:V2", "--json"]) == 1
    validate(json.loads(capsys.readouterr().out), "report")


def test_every_rule_is_named_as_described() -> None:
    for rule in RULES:
        jsonschema.validate(rule, SCHEMA["$defs"]["finding"]["properties"]["rule"])


@pytest.mark.parametrize(
    "wrong", [{"ok": "yes"}, {"schema_version": 2}, {"missing": [1]}, {"stages": [{"name": "open"}]}]
)
def test_the_schema_refuses_what_is_no_report(wrong: dict[str, Any], net: Any) -> None:
    content = json.loads(check(Boxes, net).to_json())
    validate(content, "report")
    with pytest.raises(jsonschema.ValidationError):
        validate(content | wrong, "report")
