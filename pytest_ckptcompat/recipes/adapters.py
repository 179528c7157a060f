"""The keys of adapters, as peft names them."""

from __future__ import annotations

import re
from typing import NamedTuple

PART = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<part>[AB])"
    r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?:\.(?P<leaf>weight|bias))?"
)
"""A factor of an adapter: ``lora_A.default.weight``, or ``lora_embedding_A.default`` in an embedding."""

SAVED = re.compile(
    r"(?P<module>.+)\.(?:(?P<old>original_module)|modules_to_save\.(?P<adapter>[^.]+))\.(?P<rest>.+)"
)
"""A module that was trained as a whole beside the adapters, or the original that it replaces."""

FOREIGN = re.compile(
    r"(?:^|\.)(lora_\w+|ranknum|hada_\w+|lokr_\w+|ia3_\w+|oft_\w+|boft_\w+|vera_\w+)(?:\.|$)"
)
"""Keys of other kinds of adapters, or of a LoRA with more than two factors."""


class Adapter(NamedTuple):
    """The keys of an adapter and of the module that it adapts."""

    module: str
    weight: str
    a: str
    b: str
    bias: str | None
    embedding: bool
