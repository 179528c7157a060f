from __future__ import annotations

from pytest_ckptcompat import tile
from pytest_ckptcompat.protection import broken, unknown

KEYS = ["conv1.weight", "conv1.bias", "out2.weight"]


def test_patterns_that_name_nothing_are_told_with_the_nearest_keys():
    [found] = unknown(["conv1.*", "conv2.weight"], KEYS)
    assert (found.rule, found.key, found.severity) == ("recipe-protected-key", "conv2.weight", "error")
    assert "conv1.weight" in found.message
    assert unknown(["conv*", "out2.weight"], KEYS) == []


def test_every_protected_key_that_is_touched_is_named_with_what_touches_it():
    operator = tile("conv1.*", dim=0)
    found = broken(["conv*"], {"conv1.weight": [operator], "out2.weight": [operator]})
    assert [each.key for each in found] == ["conv1.weight"]
    assert "tile(" in found[0].message
    assert "'conv*'" in found[0].message
