"""Defaults by name: model sizes and the paper's four stages; nested dicts, merged under the recipe's own keys."""

from __future__ import annotations

from typing import Annotated, Any

from mindspeed_vita.choices import MODULES
from mindspeed_vita.config.kinds import Line, OneOf, Whole

_QWEN25 = {"vocab_size": 152064, "rope_base": 1e6, "norm_eps": 1e-6}
_QWEN25_SMALL = {**_QWEN25, "vocab_size": 151936, "tie_embeddings": True}
_QWEN3 = {"family": "qwen3", "vocab_size": 151936, "num_kv_heads": 8}

MODELS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vision": {
            "tile_size": 84, "hidden_size": 96, "num_layers": 3, "num_heads": 3, "ffn_hidden_size": 384, "layer_scale_init": 0.1,
        },
        "projector": {"hidden_size": 128},
        "language": {
            "num_layers": 3, "hidden_size": 128, "num_heads": 4, "num_kv_heads": 2, "ffn_hidden_size": 384, "vocab_size": 1280,
            "max_positions": 8192,
        },
        "init_std": 0.05,
        "lm_head_chunk": 256,
    },
    "7b": {
        "language": {
            "num_layers": 28, "hidden_size": 3584, "num_heads": 28, "num_kv_heads": 4, "ffn_hidden_size": 18944, **_QWEN25,
        },
    },
    "14b": {
        "language": {
            "num_layers": 48, "hidden_size": 5120, "num_heads": 40, "num_kv_heads": 8, "ffn_hidden_size": 13824, **_QWEN25,
        },
    },
    "72b": {
        "language": {
            "num_layers": 80, "hidden_size": 8192, "num_heads": 64, "num_kv_heads": 8, "ffn_hidden_size": 29568, **_QWEN25,
        },
    },
    "qwen2.5-0.5b": {
        "language": {
            "num_layers": 24, "hidden_size": 896, "num_heads": 14, "num_kv_heads": 2, "ffn_hidden_size": 4864, **_QWEN25_SMALL,
        },
    },
    "qwen2.5-1.5b": {
        "language": {
            "num_layers": 28, "hidden_size": 1536, "num_heads": 12, "num_kv_heads": 2, "ffn_hidden_size": 8960, **_QWEN25_SMALL,
        },
    },
    "qwen2.5-3b": {
        "language": {
            "num_layers": 36, "hidden_size": 2048, "num_heads": 16, "num_kv_heads": 2, "ffn_hidden_size": 11008, **_QWEN25_SMALL,
        },
    },
    "qwen2.5-32b": {
        "language": {
            "num_layers": 64, "hidden_size": 5120, "num_heads": 40, "num_kv_heads": 8, "ffn_hidden_size": 27648, **_QWEN25,
        },
    },
    "qwen3-0.6b": {
        "language": {
            "num_layers": 28, "hidden_size": 1024, "num_heads": 16, "ffn_hidden_size": 3072, "tie_embeddings": True, **_QWEN3,
        },
    },
    "qwen3-1.7b": {
        "language": {
            "num_layers": 28, "hidden_size": 2048, "num_heads": 16, "ffn_hidden_size": 6144, "tie_embeddings": True, **_QWEN3,
        },
    },
    "qwen3-4b": {
        "language": {
            "num_layers": 36, "hidden_size": 2560, "num_heads": 32, "ffn_hidden_size": 9728, "tie_embeddings": True, **_QWEN3,
        },
    },
    "qwen3-8b": {"language": {"num_layers": 36, "hidden_size": 4096, "num_heads": 32, "ffn_hidden_size": 12288, **_QWEN3}},
    "qwen3-14b": {"language": {"num_layers": 40, "hidden_size": 5120, "num_heads": 40, "ffn_hidden_size": 17408, **_QWEN3}},
    "qwen3-32b": {"language": {"num_layers": 64, "hidden_size": 5120, "num_heads": 64, "ffn_hidden_size": 25600, **_QWEN3}},
}  # fmt: skip
"""Model sizes. 7b, 14b and 72b are Qwen2.5's. The tower is InternViT-300M, the default of VisionConfig, in all but tiny.
Source: Long-VITA section 3; the published config.json of each Qwen2.5 and Qwen3 model."""

TOWERS: dict[str, dict[str, Any]] = {
    "intern_vit_300m": {},
    "intern_vit_6b": {
        "hidden_size": 3200, "num_layers": 45, "num_heads": 25, "ffn_hidden_size": 12800, "qkv_bias": False, "qk_norm": True,
        "norm": "rms_norm", "layer_scale_init": 0.1,
    },
    "siglip_400m": {
        "tower": "siglip", "hidden_size": 1152, "num_layers": 27, "num_heads": 16, "ffn_hidden_size": 4304, "normalization": "siglip",
    },
    "clip_l": {
        "tower": "clip", "hidden_size": 1024, "num_layers": 24, "num_heads": 16, "ffn_hidden_size": 4096, "norm_eps": 1e-5,
        "normalization": "clip",
    },
}  # fmt: skip
"""Towers with tiles of 448 and patches of 14. Sizes of InternViT-300M/6B-448px, siglip-so400m-patch14-384, clip-vit-large-patch14."""

STAGES: dict[int, dict[str, Any]] = {
    1: {
        "data": {"seq_length": 32768, "resets": True, "packing": "same_source", "max_images": 128, "max_frames": 128},
        "train": {"steps": 1000, "global_batch": 528, "modules": ["projector"], "lr": 1e-3, "min_lr": 1e-5},
    },
    2: {
        "data": {"seq_length": 16384, "resets": True, "packing": "same_source", "max_images": 64, "max_frames": 64},
        "train": {
            "steps": 5000, "global_batch": 528, "modules": list(MODULES), "lr": 1e-5, "min_lr": 1e-7,
            "vision_lr_mult": 0.1, "vision_layer_decay": 0.9,
        },
    },
    3: {
        "data": {"seq_length": 131072, "resets": False, "packing": "cross_source", "max_images": 512, "max_frames": 512},
        "train": {"steps": 1000, "global_batch": 64, "modules": ["projector", "language"], "lr": 5e-6, "min_lr": 1e-7},
    },
    4: {
        "data": {"seq_length": 1048576, "resets": False, "packing": "cross_source", "max_images": 4096, "max_frames": 4096},
        "train": {"steps": 500, "global_batch": 8, "modules": ["projector", "language"], "lr": 5e-6, "min_lr": 1e-7},
    },
}  # fmt: skip
"""The paper's four stages (Table 2)."""

ModelPreset = Annotated[str, Line(), OneOf(names=lambda: MODELS)]
TowerPreset = Annotated[str, Line(), OneOf(names=lambda: TOWERS, plugins=False, empty=True)]
Stage = Annotated[int, Whole(), OneOf(names=lambda: STAGES, plugins=False)]
