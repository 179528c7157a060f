from __future__ import annotations

from pytest_ckptcompat.suggest.renaming import renames


def renamed(checkpoint, model):
    _, after = renames(checkpoint, model)
    return dict(zip(checkpoint, after, strict=True))


def stages(shift, dims=(4, 8, 16, 32)):
    """A pyramid in which what leads from stage to stage belongs to the one before it, or to the one behind."""
    shapes = {}
    for i, dim in enumerate(dims):
        shapes[f"layers.{i}.block.weight"] = (dim, dim)
        other = i - 1 if shift else i + 1
        if 0 <= other < len(dims):
            shapes[f"layers.{i}.down.norm.weight"] = (dims[min(i, other)] * 4,)
            shapes[f"layers.{i}.down.weight"] = (dims[max(i, other)], dims[min(i, other)] * 4)
    return shapes


def test_a_part_that_was_handed_to_the_next_stage():
    expected = {
        key: key.replace(f"layers.{i}.down", f"layers.{i + 1}.down")
        for i in range(3)
        for key in stages(False)
        if f".{i}.down" in key
    }
    found = renamed(stages(False), stages(True))
    assert {key: name for key, name in found.items() if "down" in key} == expected
    back = renamed(stages(True), stages(False))
    assert {name: key for key, name in back.items()} == found


def test_the_later_stage_is_renamed_first():
    operators, _ = renames(stages(False), stages(True))
    assert [operator.pattern for operator in operators] == [f"layers.{i}.down.*" for i in (2, 1, 0)]


def test_parts_of_one_size_are_not_moved_on():
    def same(*numbers):
        return {f"layers.{i}.block.weight": (4, 4) for i in range(4)} | {
            f"layers.{i}.down.weight": (4, 4) for i in numbers
        }

    assert renamed(same(0, 1, 2), same(1, 2, 3)) == {key: key for key in same(0, 1, 2)}


def test_one_part_that_moved_alone():
    def tapped(number):
        return {f"layers.{i}.block.weight": (4, 4) for i in range(4)} | {
            f"layers.{number}.aux.weight": (9, 4)
        }

    assert renamed(tapped(1), tapped(2))["layers.1.aux.weight"] == "layers.2.aux.weight"


def test_a_number_more_in_a_name_inside_a_list():
    leaves = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

    def blocks(names, count):
        return {
            f"blocks.{i}.attn.{name}.{leaf}": (8, 8) if leaf == "weight" else (8,)
            for i in range(count)
            for name in names
            for leaf in ("weight", "bias")
        }

    for count in (1, 3):
        for old, new in ((leaves.keys(), leaves.values()), (leaves.values(), leaves.keys())):
            found = renamed(blocks(old, count), blocks(new, count))
            assert found == dict(zip(blocks(old, count), blocks(new, count), strict=True))
