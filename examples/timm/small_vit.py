"""A small vision transformer of timm's, for pictures of 48 pixels; its checkpoint was trained at 32."""

from pathlib import Path

import timm
from timm.models.vision_transformer import checkpoint_filter_fn

CHECKPOINT = Path(__file__).parent / "vit32.pth"
SIZES = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


def vit(img_size=48):
    return timm.create_model("vit_tiny_patch16_224", img_size=img_size, **SIZES)


def filtered(state_dict):
    """What timm itself does to a checkpoint before it is loaded: here, positions are resampled."""
    return checkpoint_filter_fn(state_dict, vit())
