"""The example writes its checkpoint when it is first run, with random weights and no download."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def saved():
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(__file__).parent / "tiny-llama"
    if not folder.exists():
        sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
        heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = LlamaConfig(**sizes, **heads, max_position_embeddings=32)
        LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="20KB")
