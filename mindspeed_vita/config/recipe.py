"""The recipe: every setting of a training run, as frozen dataclasses. Parsing lives in load.py, cross-field checks in validate.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from mindspeed_vita.config.languages import RELEASED, language_names, language_traits
from mindspeed_vita.config.objectives import SUPERVISED
from mindspeed_vita.config.projectors import projector_traits

MODULES = ("vision", "projector", "language")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower: a plain ViT over square tiles."""

    preset: str = ""
    """Where the defaults of this section come from: intern_vit_300m, intern_vit_6b, siglip_400m or clip_l (presets.py); empty: as below."""
    tower: str = "intern_vit"
    """Name in the tower registry: intern_vit | siglip | clip, or one that was added."""
    tile_size: int = 448
    """Side of a tile, in pixels."""
    normalization: str = "imagenet"
    """Mean and deviation of the pixels that the tower was trained on: imagenet | clip | siglip."""
    patch_size: int = 14
    """Side of a patch, in pixels."""
    hidden_size: int = 1024
    """Width of the tower."""
    num_layers: int = 24
    """Transformer layers."""
    num_heads: int = 16
    """Attention heads; must divide hidden_size."""
    ffn_hidden_size: int = 4096
    """Width of the feed-forward layer."""
    qkv_bias: bool = True
    """Queries, keys and values have biases."""
    qk_norm: bool = False
    """RMSNorm over the queries, and over the keys, of all heads together (InternViT-6B)."""
    norm: str = "layer_norm"
    """layer_norm | rms_norm (InternViT-6B)."""
    norm_eps: float = 1e-6
    """Epsilon of the norms inside the tower."""
    layer_scale_init: float = 1.0
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
class ProjectorConfig:
    """From tower features to language embeddings: pixel shuffle, LayerNorm, two linear layers."""

    kind: str = "mlp"
    """Name in the projector registry: mlp | mlp_stride (the shuffle need not divide the grid) | mlp_newline (a learned newline a row)."""
    pixel_shuffle: int = 2
    """Side of the square of patches merged into one token."""
    hidden_size: int = 1024
    """Width between the two linear layers."""
    norm_eps: float = 1e-5
    """LayerNorm epsilon of the pre-norm (1e-5 in the released weights, not the tower's 1e-6)."""

    def tokens(self, grid: int) -> int:
        """Tokens that a tile of grid x grid patches becomes."""
        return projector_traits(self.kind).tokens(grid, self.pixel_shuffle)


@dataclass(frozen=True, kw_only=True)
class RopeScalingConfig:
    """Stretches rotary positions beyond the lengths the weights were trained on; the same in training, inference and export."""

    kind: str = "none"
    """none | linear | ntk (NTK-aware base) | yarn | longrope | llama3 (Llama 3.1 and later)."""
    factor: float = 1.0
    """How many times longer than original_positions."""
    original_positions: int = 32768
    """Positions the weights were trained on."""
    beta_fast: float = 32.0
    """yarn: frequencies that turn more often than this within original_positions stay as they are."""
    beta_slow: float = 1.0
    """yarn: frequencies that turn less often than this are interpolated."""
    attention_factor: float = 0.0
    """yarn, longrope: factor on cosine and sine; 0 takes the method's own (1 + 0.1 ln factor; sqrt(1 + ln factor / ln original))."""
    short_factor: tuple[float, ...] = ()
    """longrope: divisor of each frequency where the longest document of a pack has at most original_positions tokens (all documents of a
    pack are turned alike, as one sequence is in transformers); in generation, where prompt and answer so far do."""
    long_factor: tuple[float, ...] = ()
    """longrope: divisor of each frequency where it has more."""
    low_freq_factor: float = 1.0
    """llama3: frequencies that turn less often than this within original_positions are divided by factor."""
    high_freq_factor: float = 4.0
    """llama3: frequencies that turn more often than this stay as they are; between the two limits the divisor goes over to 1."""


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """The decoder: a family's traits (languages.py) at the sizes below."""

    family: str = RELEASED
    """Name of the family: qwen2 (Qwen2 and Qwen2.5) | qwen3 (dense), or one that a plugin registered. It has defaults for rope_base,
    norm_eps, tie_embeddings and data.template."""
    num_layers: int = 48
    """Decoder layers."""
    hidden_size: int = 5120
    """Width of the residual stream."""
    num_heads: int = 40
    """Query heads."""
    num_kv_heads: int = 8
    """Key and value heads (grouped queries); must divide num_heads."""
    head_width: int = 0
    """Width of one attention head; 0 takes the family's, which is 128 in qwen3 and hidden_size / num_heads in qwen2."""
    ffn_hidden_size: int = 13824
    """Width of the gated feed-forward layer."""
    vocab_size: int = 152064
    """Rows of the embedding table and of the output layer."""
    max_positions: int = 1310720
    """Longest position written to an exported config."""
    rope_base: float = 1e6
    """Base of the rotary embedding."""
    rope_scaling: RopeScalingConfig = field(default_factory=RopeScalingConfig)
    """Stretching of the rotary positions."""
    norm_eps: float = 1e-6
    """RMSNorm epsilon."""
    tie_embeddings: bool = False
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
class ModelConfig:
    """Tower, projector and language model."""

    preset: str = "tiny"
    """Where the defaults of this section come from: tiny, 7b, 14b, 72b, qwen2.5-0.5b, qwen3-8b and others (presets.py)."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    """The vision tower."""
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    """The projector."""
    language: LanguageConfig = field(default_factory=LanguageConfig)
    """The language model."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""
    lm_head: str = "masked"
    """masked (logits for supervised rows only) | chunked (all rows, in chunks) | original (all rows at once)."""
    lm_head_chunk: int = 1024
    """Rows per chunk of logits."""

    @property
    def tokens_per_tile(self) -> int:
        """Language-model tokens that one tile becomes."""
        return self.projector.tokens(self.vision.grid)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where samples come from and how they become packs."""

    mixture: str = ""
    """Path of the mixture YAML (sources with paths, ratio or num)."""
    media_root: str = ""
    """Folder that relative media paths start from; empty: the folder of each JSONL file."""
    tokenizer: str = ""
    """Tokenizer folder (Qwen2.5, or one that holds the same special tokens)."""
    template: str = "qwen2"
    """Name in the chat-template registry; the default is that of model.language.family."""
    loss_weighting: str = "token"
    """token (every supervised token counts the same) | sample (every sample counts the same, however long its answers are)."""
    seq_length: int = 32768
    """Tokens per pack."""
    resets: bool = True
    """Isolate the samples of a pack: positions restart and attention stays inside each sample."""
    packing: str = "same_source"
    """same_source | cross_source."""
    group: int = 1
    """Consecutive rows of a file that stay together: they share a pack, side by side. 2 keeps the two answers of a preference pair
    together. Each row may fill that share of a pack, and ratio and num of the mixture count groups."""
    tiling: str = "dynamic"
    """dynamic (stretched over the closest grid, as published) | anyres (padded to the grid that keeps most pixels) | fixed (one tile)."""
    pixels: str = "shown"
    """shown (pictures turned as EXIF says, transparency on white, 16-bit grey scaled) | published (as the published code: neither)."""
    min_tiles: int = 1
    """Fewest tiles a picture is cut into."""
    max_tiles: int = 12
    """Most tiles a picture is cut into (thumbnail not counted)."""
    max_images: int = 128
    """Most pictures in one sample; a sample with more is skipped and counted."""
    max_frames: int = 128
    """Most frames taken from one video."""
    max_fps: float = 1.0
    """Frames per second taken from a video."""
    frame_sampler: str = "uniform"
    """uniform (by frame number) | time (by the moment a frame is shown: for clips whose frames are not spaced evenly) | legacy (the
    released sampler, which can cut off a folder's tail)."""
    index: str = ""
    """Folder for the index and the packing plans, on a file system that all hosts share; empty: vita_index beside the mixture."""
    index_processes: int = 0
    """Processes that index; 0: one for each CPU core this process may use."""
    num_workers: int = 0
    """Loader processes per data-parallel rank; 0 loads in the training process."""
    prefetch: int = 2
    """Packs that each loader process keeps ready."""
    loader_seconds: float = 3600.0
    """Longest wait for a pack from the loader processes; then the run stops with a message. 0 waits for ever."""
    seed: int = 1234
    """Seed of the packing plan."""
    quarantine: str = ""
    """JSONL file for samples that failed to decode; empty: quarantine.jsonl in the checkpoint folder."""
    failure_budget: float = 0.01
    """Share of a source's rows, each counted once, that may be faulty or have unusable media before the run stops; ten may always."""
    video_reader: str = "pyav"
    """pyav | decord (x86-64) | torchcodec (where its FFmpeg libraries are). The last two are refused for containers of which they
    take other frames."""
    resize: str = "exact"
    """exact (Pillow's bicubic, as published) | fast (torch's, at most 2/255 off in pictures; a video's edge differs more)."""
    scale_in_decoder: bool = False
    """Scale video frames while they are decoded (swscale, with pyav): less memory and time, other pixels."""
    decode_seconds: float = 60.0
    """Hard deadline of decoding one picture or video on one rank, 0.25 more for each frame it takes of a video; then its decoder is
    killed and the sample masked."""
    decode_memory: int = 4 << 30
    """Bytes a decoder process may allocate."""
    max_media_bytes: int = 16 << 30
    """Largest picture or video file."""
    max_pixels: int = 150_000_000
    """Most pixels of a picture or of one video frame, before it is cut or scaled."""
    max_video_frames: int = 2_000_000
    """Most frames of a video, taken or not."""
    max_video_seconds: float = 21600.0
    """Longest video."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Sizes of the parallel axes; data parallel is what remains of the world."""

    tp: int = 1
    """Tensor parallel; above 1 it always uses sequence parallel."""
    pp: int = 1
    """Pipeline parallel; the tower lives on the first stage."""
    cp: int = 1
    """Context parallel."""
    ulysses: int = 1
    """Context-parallel ranks that make up one ring rank, by swapping tokens for heads; divides cp and a rank's heads. 1: ring alone."""
    vision_parallel: str = "balanced"
    """balanced (every rank holds the tower, tiles are shared out over tp x cp) | tensor (tp ranks share the tower's weights, tiles
    are shared out over cp)."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation."""

    steps: int = 1000
    """Optimizer steps; warm-up and cosine span them. A resumed run may have more or fewer: its schedule then spans the new number."""
    global_batch: int = 8
    """Packs per optimizer step, over all data-parallel ranks; one pack is one micro-batch."""
    objective: str = SUPERVISED
    """What is optimised: supervised (cross-entropy of the supervised tokens), or the name of one that a plugin registered."""
    modules: tuple[str, ...] = MODULES
    """Modules that train; the others are frozen: vision, projector, language."""
    lr: float = 1e-5
    """Peak learning rate."""
    min_lr: float = 1e-7
    """Final learning rate of the cosine."""
    warmup_fraction: float = 0.03
    """Share of the steps spent in linear warm-up."""
    vision_lr_mult: float = 1.0
    """Learning-rate multiplier of the tower."""
    projector_lr_mult: float = 1.0
    """Learning-rate multiplier of the projector."""
    language_lr_mult: float = 1.0
    """Learning-rate multiplier of the language model."""
    vision_layer_decay: float = 1.0
    """Extra multiplier per tower layer, counted down from the last: layer i gets decay ** (num_layers - 1 - i)."""
    weight_decay: float = 0.0
    """AdamW weight decay; never on biases, norms and LayerScale."""
    beta1: float = 0.9
    """Adam beta 1."""
    beta2: float = 0.999
    """Adam beta 2."""
    eps: float = 1e-8
    """Adam epsilon."""
    clip_grad: float = 1.0
    """Global gradient-norm limit; 0 turns clipping off."""
    precision: str = "bf16"
    """bf16 | fp32. Optimizer state and gradient reduction are fp32 in both."""
    recompute: str = "none"
    """none | selective (core attention) | full (every layer)."""
    seed: int = 1234
    """Seed of the initial weights."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Saving, resuming and starting."""

    directory: str = "checkpoints"
    """Folder of this run: step_XXXXXXX folders, metrics.jsonl, quarantine.jsonl."""
    save_every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Newest checkpoints kept; 0 keeps all."""
    init_from: str = ""
    """Weights to start from when the folder holds no checkpoint: a native run or step folder. Weights only."""
    background: bool = False
    """Write checkpoints in a thread while training goes on, from a copy in host memory; the last one is always waited for."""
    resume: bool = True
    """Continue from the newest checkpoint in the folder if there is one."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """What a run prints and writes."""

    every: int = 1
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = True
    """Write TensorBoard events to <directory>/tensorboard."""
    progress: bool = True
    """Show a progress bar on a terminal; plain lines elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run."""

    name: str = "run"
    """Shown in logs and tables."""
    plugins: tuple[str, ...] = ()
    """Python modules to import before the recipe is checked: they register towers, projectors or formats of your own. They are looked for
    next to the recipe, then on PYTHONPATH."""
    stage: Optional[int] = None
    """1 to 4: take the paper's settings of that stage as defaults (presets.py)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Parallel axes."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving and starting."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Logs."""
