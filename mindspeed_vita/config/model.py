"""The architecture, as frozen dataclasses: tower, projector and decoder. The rest of a run is in recipe.py."""

from __future__ import annotations

from dataclasses import dataclass, field

from mindspeed_vita.choices import LmHead, RopeScaling
from mindspeed_vita.config.kinds import Flag, Integer, Real, Reals, Section, Size
from mindspeed_vita.config.languages import RELEASED, FamilyName, language_names, language_traits
from mindspeed_vita.config.presets import ModelPreset, TowerPreset
from mindspeed_vita.config.projectors import ProjectorName, projector_traits
from mindspeed_vita.config.towers import TowerName
from mindspeed_vita.hf.choices import Norm, Normalization


@dataclass(frozen=True, kw_only=True)
class VisionConfig(Section):
    """The vision tower: a plain ViT over square tiles."""

    preset: TowerPreset = ""
    """Where the defaults of this section come from: intern_vit_300m, intern_vit_6b, siglip_400m or clip_l (presets.py); empty: as below."""
    tower: TowerName = "intern_vit"
    """Name in the tower registry: intern_vit | siglip | clip, or one that was added."""
    tile_size: Size = 448
    """Side of a tile, in pixels."""
    normalization: Normalization = "imagenet"
    """Mean and deviation of the pixels that the tower was trained on: imagenet | clip | siglip."""
    patch_size: Size = 14
    """Side of a patch, in pixels."""
    hidden_size: Size = 1024
    """Width of the tower."""
    num_layers: Size = 24
    """Transformer layers."""
    num_heads: Size = 16
    """Attention heads; must divide hidden_size."""
    ffn_hidden_size: Size = 4096
    """Width of the feed-forward layer."""
    qkv_bias: Flag = True
    """Queries, keys and values have biases."""
    qk_norm: Flag = False
    """RMSNorm over the queries, and over the keys, of all heads together (InternViT-6B)."""
    norm: Norm = "layer_norm"
    """The norms inside the tower: layer_norm | rms_norm (InternViT-6B)."""
    norm_eps: Real = 1e-6
    """Epsilon of the norms inside the tower."""
    layer_scale_init: Real = 1.0
    """Initial value of the LayerScale vectors ls1 and ls2."""

    @property
    def grid(self) -> int:
        """Patches along one side of a tile."""
        return self.tile_size // self.patch_size

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig(Section):
    """From tower features to language embeddings: pixel shuffle, LayerNorm, two linear layers."""

    kind: ProjectorName = "mlp"
    """Name in the projector registry: mlp | mlp_stride (the shuffle need not divide the grid) | mlp_newline (a learned newline after
    each row)."""
    pixel_shuffle: Size = 2
    """Side of the square of patches merged into one token."""
    hidden_size: Size = 1024
    """Width between the two linear layers."""
    norm_eps: Real = 1e-5
    """LayerNorm epsilon of the pre-norm (1e-5 in the released weights, not the tower's 1e-6)."""

    def tokens(self, grid: int) -> int:
        """Tokens that a tile of grid x grid patches becomes."""
        return projector_traits(self.kind).tokens(grid, self.pixel_shuffle)


@dataclass(frozen=True, kw_only=True)
class RopeScalingConfig(Section):
    """Stretches rotary positions beyond the lengths the weights were trained on; the same in training, inference and export."""

    kind: RopeScaling = "none"
    """none | linear | ntk (NTK-aware base) | yarn | longrope | llama3 (Llama 3.1 and later)."""
    factor: Real = 1.0
    """How many times longer than original_positions."""
    original_positions: Integer = 32768
    """Positions the weights were trained on."""
    beta_fast: Real = 32.0
    """yarn: frequencies that turn more often than this within original_positions stay as they are."""
    beta_slow: Real = 1.0
    """yarn: frequencies that turn less often than this are interpolated."""
    attention_factor: Real = 0.0
    """yarn, longrope: factor on cosine and sine; 0 takes the method's own (1 + 0.1 ln factor; sqrt(1 + ln factor / ln original))."""
    short_factor: Reals = ()
    """longrope: divisor of each frequency where the longest document of a pack has at most original_positions tokens (all documents of a
    pack are turned alike, as one sequence is in transformers); in generation, where prompt and answer so far do."""
    long_factor: Reals = ()
    """longrope: divisor of each frequency where it has more."""
    low_freq_factor: Real = 1.0
    """llama3: frequencies that turn less often than this within original_positions are divided by factor."""
    high_freq_factor: Real = 4.0
    """llama3: frequencies that turn more often than this stay as they are; between the two limits the divisor goes over to 1."""


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(Section):
    """The decoder: a family's traits (languages.py) at the sizes below."""

    family: FamilyName = RELEASED
    """Name of the family: qwen2 (Qwen2 and Qwen2.5) | qwen3 (dense), or one that a plugin registered. It has defaults for rope_base,
    norm_eps, tie_embeddings and data.template."""
    num_layers: Size = 48
    """Decoder layers."""
    hidden_size: Size = 5120
    """Width of the residual stream."""
    num_heads: Size = 40
    """Query heads."""
    num_kv_heads: Size = 8
    """Key and value heads (grouped queries); must divide num_heads."""
    head_width: Integer = 0
    """Width of one attention head; 0 takes the family's, which is 128 in qwen3 and hidden_size / num_heads in qwen2."""
    ffn_hidden_size: Size = 13824
    """Width of the gated feed-forward layer."""
    vocab_size: Size = 152064
    """Rows of the embedding table and of the output layer."""
    max_positions: Integer = 1310720
    """Longest position written to an exported config."""
    rope_base: Real = 1e6
    """Base of the rotary embedding."""
    rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    """Stretching of the rotary positions."""
    norm_eps: Real = 1e-6
    """RMSNorm epsilon."""
    tie_embeddings: Flag = False
    """Use the embedding table as the output layer."""

    def __post_init__(self) -> None:
        # The family's own width is stored as 0, so that both ways to write it compare equal.
        if self.family in language_names() and self.num_heads and self.head_width == self._own_width:
            object.__setattr__(self, "head_width", 0)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.head_width or self._own_width

    @property
    def _own_width(self) -> int:
        return language_traits(self.family).head_dim or self.hidden_size // self.num_heads


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """Tower, projector and language model."""

    preset: ModelPreset = "tiny"
    """Where the defaults of this section come from: tiny, 7b, 14b, 72b, qwen2.5-0.5b, qwen3-8b and others (presets.py)."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    """The vision tower."""
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    """The projector."""
    language: LanguageConfig = field(default_factory=LanguageConfig)
    """The language model."""
    init_std: Real = 0.02
    """Standard deviation of the initial weights."""
    lm_head: LmHead = "masked"
    """masked (logits for supervised rows only) | chunked (all rows, in chunks) | original (all rows at once)."""
    lm_head_chunk: Size = 1024
    """Rows per chunk of logits."""

    @property
    def tokens_per_tile(self) -> int:
        """Language-model tokens that one tile becomes."""
        return self.projector.tokens(self.vision.grid)
