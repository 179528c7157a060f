"""Architectures of torchvision and transformers, built from their configurations, and pairs of their variants."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from verdict_zoo import Exhibit

if TYPE_CHECKING:
    from torch import nn

# -- torchvision: name, its arguments, and what its variant is or takes instead ------------------------------

TORCHVISION: dict[str, tuple[str, dict[str, Any]]] = {
    "alexnet": ("alexnet", {"num_classes": 7}),
    "vgg11": ("vgg11_bn", {}),
    "vgg16_bn": ("vgg13_bn", {}),
    "resnet18": ("resnet34", {}),
    "resnet50": ("wide_resnet50_2", {}),
    "resnext50_32x4d": ("resnet50", {}),
    "densenet121": ("densenet169", {}),
    "googlenet": ("googlenet", {"aux_logits": False}),
    "inception_v3": ("inception_v3", {"num_classes": 5}),
    "squeezenet1_1": ("squeezenet1_0", {}),
    "shufflenet_v2_x0_5": ("shufflenet_v2_x1_0", {}),
    "mobilenet_v2": ("mobilenet_v2", {"width_mult": 0.5}),
    "mobilenet_v3_small": ("mobilenet_v3_large", {}),
    "mnasnet0_5": ("mnasnet1_0", {}),
    "efficientnet_b0": ("efficientnet_b1", {}),
    "efficientnet_v2_s": ("efficientnet_b0", {}),
    "regnet_y_400mf": ("regnet_x_400mf", {}),
    "convnext_tiny": ("convnext_tiny", {"num_classes": 11}),
    "vit_b_32": ("vit_b_32", {"image_size": 256}),
    "swin_t": ("swin_v2_t", {}),
    "swin_v2_t": ("swin_t", {}),
    "maxvit_t": ("maxvit_t", {"num_classes": 3}),
    "segmentation.deeplabv3_resnet50": ("segmentation.fcn_resnet50", {}),
    "segmentation.lraspp_mobilenet_v3_large": ("segmentation.deeplabv3_mobilenet_v3_large", {}),
    "detection.fasterrcnn_mobilenet_v3_large_fpn": ("detection.retinanet_resnet50_fpn", {}),
    "detection.ssdlite320_mobilenet_v3_large": (
        "detection.ssdlite320_mobilenet_v3_large",
        {"num_classes": 4},
    ),
    "video.r3d_18": ("video.r2plus1d_18", {}),
    "video.s3d": ("video.s3d", {"num_classes": 9}),
    "optical_flow.raft_small": ("optical_flow.raft_large", {}),
}


def torchvision_exhibit(name: str) -> Exhibit:
    """On the meta device, except what computes with values when it is built."""
    variant, arguments = TORCHVISION[name]
    return Exhibit(lambda: _torchvision(name), lambda: _torchvision(variant, **arguments))


def _torchvision(name: str, **arguments: Any) -> nn.Module:
    path, _, function = f"torchvision.models.{name}".rpartition(".")
    if name.startswith(("segmentation.", "detection.")):
        arguments |= {"weights_backbone": None}
    if name in ("googlenet", "inception_v3"):
        arguments |= {"init_weights": False}
    make = getattr(import_module(path), function)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                model: nn.Module = make(weights=None, **arguments)
        except RuntimeError:
            model = make(weights=None, **arguments).to("meta")
    return model


# -- transformers: configuration, model, its arguments, and those that its variant has instead ---------------

_TEXT = {
    "vocab_size": 37,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = {**_TEXT, "num_key_value_heads": 2, "head_dim": 4}
_OPENAI = {
    "vocab_size": 37,
    "n_positions": 32,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "rotary_dim": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BOTH = {
    "vocab_size": 37,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": 2,
}
_PICTURE = {**_TEXT, "image_size": 32, "patch_size": 8}
_SPEECH = {
    **_TEXT,
    "conv_dim": (8, 8),
    "conv_stride": (2, 2),
    "conv_kernel": (3, 3),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
_EXPERTS = {**_GROUPED, "num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2}
_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
_TWO_TOWERS = {
    "text_config": {**_TEXT, "projection_dim": 8},
    "vision_config": {**_SMALL, "image_size": 32, "patch_size": 8, "projection_dim": 8},
}

TRANSFORMERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "LlamaForCausalLM": ("LlamaConfig", _GROUPED, {"num_key_value_heads": 4}),
    "MistralForCausalLM": ("MistralConfig", _GROUPED, {"num_hidden_layers": 3}),
    "MixtralForCausalLM": ("MixtralConfig", _EXPERTS, {"num_local_experts": 2}),
    "Qwen2ForCausalLM": ("Qwen2Config", _GROUPED, {"tie_word_embeddings": True}),
    "Qwen3ForCausalLM": ("Qwen3Config", _GROUPED, {"attention_bias": True}),
    "Qwen2MoeForCausalLM": ("Qwen2MoeConfig", _EXPERTS, {"num_experts": 2}),
    "GemmaForCausalLM": ("GemmaConfig", _GROUPED, {"vocab_size": 41}),
    "Gemma2ForCausalLM": ("Gemma2Config", _GROUPED, {"num_hidden_layers": 1}),
    "PhiForCausalLM": ("PhiConfig", _TEXT, {"qk_layernorm": True}),
    "Phi3ForCausalLM": ("Phi3Config", _GROUPED, {"num_hidden_layers": 3}),
    "CohereForCausalLM": ("CohereConfig", _GROUPED, {"use_qk_norm": True}),
    "Olmo2ForCausalLM": ("Olmo2Config", _GROUPED, {"intermediate_size": 32}),
    "StableLmForCausalLM": ("StableLmConfig", _GROUPED, {"use_qkv_bias": True}),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", _TEXT, {"attention_bias": False}),
    "GPT2LMHeadModel": ("GPT2Config", _OPENAI, {"n_positions": 48}),
    "GPTJForCausalLM": ("GPTJConfig", _OPENAI, {"n_layer": 3}),
    "OPTForCausalLM": ("OPTConfig", {**_TEXT, "ffn_dim": 24, "word_embed_proj_dim": 16}, {"ffn_dim": 32}),
    "BloomForCausalLM": ("BloomConfig", {**_TEXT, "n_layer": 2, "n_head": 4}, {"vocab_size": 50}),
    "FalconForCausalLM": ("FalconConfig", _TEXT, {"new_decoder_architecture": True}),
    "MambaForCausalLM": ("MambaConfig", {**_TEXT, "state_size": 4}, {"use_bias": True}),
    "BertForMaskedLM": ("BertConfig", _TEXT, {"vocab_size": 40}),
    "BertForSequenceClassification": ("BertConfig", _TEXT, {"num_labels": 5}),
    "RobertaForMaskedLM": ("RobertaConfig", _TEXT, {"type_vocab_size": 1}),
    "XLMRobertaForTokenClassification": ("XLMRobertaConfig", _TEXT, {"num_labels": 9}),
    "DistilBertForMaskedLM": (
        "DistilBertConfig",
        {"vocab_size": 37, "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4},
        {"n_layers": 3},
    ),
    "ElectraForPreTraining": ("ElectraConfig", {**_TEXT, "embedding_size": 8}, {"embedding_size": 16}),
    "AlbertForMaskedLM": ("AlbertConfig", {**_TEXT, "embedding_size": 8}, {"inner_group_num": 2}),
    "DebertaV2ForMaskedLM": ("DebertaV2Config", _TEXT, {"relative_attention": True}),
    "MPNetForMaskedLM": ("MPNetConfig", _TEXT, {"relative_attention_num_buckets": 16}),
    "ModernBertForMaskedLM": ("ModernBertConfig", _TEXT, {"norm_bias": True}),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": 37, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4},
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "BartForConditionalGeneration": ("BartConfig", _BOTH, {"decoder_layers": 2}),
    "MBartForConditionalGeneration": ("MBartConfig", _BOTH, {"max_position_embeddings": 40}),
    "MarianMTModel": ("MarianConfig", _BOTH, {"vocab_size": 39}),
    "WhisperForConditionalGeneration": (
        "WhisperConfig",
        {**_BOTH, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 16},
        {"num_mel_bins": 16},
    ),
    "Wav2Vec2ForCTC": ("Wav2Vec2Config", _SPEECH, {"feat_extract_norm": "layer"}),
    "HubertForCTC": ("HubertConfig", _SPEECH, {"vocab_size": 30}),
    "ViTForImageClassification": ("ViTConfig", _PICTURE, {"image_size": 64}),
    "DeiTForImageClassification": ("DeiTConfig", _PICTURE, {"num_labels": 7}),
    "BeitForImageClassification": ("BeitConfig", _PICTURE, {"use_relative_position_bias": True}),
    "Dinov2Model": ("Dinov2Config", {**_PICTURE, "mlp_ratio": 2}, {"use_swiglu_ffn": True}),
    "SwinForImageClassification": (
        "SwinConfig",
        {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2],
         "window_size": 4},
        {"window_size": 2},
    ),
    "ConvNextForImageClassification": (
        "ConvNextConfig", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, {"depths": [1, 2]}
    ),
    "SegformerForSemanticSegmentation": (
        "SegformerConfig",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_encoder_blocks": 2, "sr_ratios": [2, 1],
         "num_attention_heads": [1, 2], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2],
         "decoder_hidden_size": 8},
        {"num_labels": 6},
    ),
    "CLIPModel": ("CLIPConfig", _TWO_TOWERS, {"projection_dim": 4}),
    "SiglipModel": (
        "SiglipConfig", _TWO_TOWERS, {"vision_config": {**_SMALL, "image_size": 64, "patch_size": 8}}
    ),
}  # fmt: skip


def transformers_exhibit(name: str) -> Exhibit:
    configuration, arguments, changes = TRANSFORMERS[name]

    def build(**changed: Any) -> nn.Module:
        transformers: Any = import_module("transformers")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = getattr(transformers, configuration)(**(arguments | changed))
            model: nn.Module = getattr(transformers, name)(config)
        return model

    return Exhibit(build, lambda: build(**changes))
