"""The recipe: every setting of a training run, as frozen dataclasses. load.py reads it, validate.py checks fields against each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Optional

from mindspeed_vita.choices import (
    MODULES,
    LayerSplit,
    LossWeighting,
    Module,
    Offload,
    Overlap,
    Packing,
    Precision,
    Recompute,
    Resize,
    VideoReader,
    VisionParallel,
)
from mindspeed_vita.config.held_out import EvalConfig
from mindspeed_vita.config.kernels import KernelsConfig
from mindspeed_vita.config.kinds import (
    Count,
    Factor,
    Flag,
    Integer,
    Line,
    Listed,
    OneOf,
    PartialShare,
    Positive,
    Rate,
    Real,
    Section,
    Share,
    Size,
    Sizes,
    Text,
    Texts,
    Wait,
    Whole,
)
from mindspeed_vita.config.lora import LoraConfig
from mindspeed_vita.config.model import LanguageConfig, ModelConfig, ProjectorConfig, RopeScalingConfig, VisionConfig
from mindspeed_vita.config.objectives import SUPERVISED, objective_names
from mindspeed_vita.config.presets import Stage
from mindspeed_vita.config.watching import DebugConfig, HealthConfig, LoggingConfig, ProfileConfig
from mindspeed_vita.hf.choices import FrameSampler, Pixels, Tiling

__all__ = [
    "MODULES",
    "CheckpointConfig",
    "DataConfig",
    "DebugConfig",
    "EvalConfig",
    "HealthConfig",
    "KernelsConfig",
    "LanguageConfig",
    "LoggingConfig",
    "LoraConfig",
    "ModelConfig",
    "ParallelConfig",
    "ProfileConfig",
    "ProjectorConfig",
    "Recipe",
    "RopeScalingConfig",
    "TrainConfig",
    "VisionConfig",
]


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Where samples come from and how they become packs."""

    mixture: Text = ""
    """Path of the mixture YAML (sources with paths, ratio or num)."""
    media_root: Text = ""
    """Folder that relative media paths start from, or its address in an object store; empty: the folder of each JSONL file."""
    store_cache: Text = ""
    """Folder into which each host fetches what the mixture and media_root name in object stores (s3://bucket/folder): best on a local disk,
    and the same path on every host. Empty: mindspeed_vita/data in $XDG_CACHE_HOME or ~/.cache."""
    store_cache_bytes: Size = 256 << 30
    """Most bytes of fetched media; the longest unused go first. Files of samples and shards stay, and come on top."""
    tokenizer: Text = ""
    """Tokenizer folder (Qwen2.5, or one that holds the same special tokens)."""
    template: Text = "qwen2"
    """Name in the chat-template registry; the default is that of model.language.family."""
    loss_weighting: LossWeighting = "token"
    """token (every supervised token counts the same) | sample (every sample counts the same, however long its answers are)."""
    seq_length: Size = 32768
    """Tokens per pack."""
    resets: Flag = True
    """Isolate the samples of a pack: positions restart and attention stays inside each sample."""
    packing: Packing = "same_source"
    """The samples of a pack come from one source (same_source) or from any (cross_source)."""
    group: Size = 1
    """Consecutive rows of a file that stay together: they share a pack, side by side. 2 keeps the two answers of a preference pair
    together. Each row may fill that share of a pack, and ratio and num of the mixture count groups."""
    tiling: Tiling = "dynamic"
    """dynamic (stretched over the closest grid, as published) | anyres (padded to the grid that keeps most pixels) | fixed (one tile)."""
    pixels: Pixels = "shown"
    """shown (pictures turned as EXIF says, transparency on white, 16-bit grey scaled) | published (as the published code: neither)."""
    min_tiles: Integer = 1
    """Fewest tiles a picture is cut into."""
    max_tiles: Integer = 12
    """Most tiles a picture is cut into (thumbnail not counted)."""
    max_images: Size = 128
    """Most pictures in one sample; a sample with more is skipped and counted."""
    max_frames: Size = 128
    """Most frames taken from one video."""
    max_fps: Rate = 1.0
    """Frames per second taken from a video."""
    frame_sampler: FrameSampler = "uniform"
    """uniform (by frame number) | time (by the moment a frame is shown: for clips whose frames are not spaced evenly) | legacy (the
    released sampler, which can cut off a folder's tail)."""
    index: Text = ""
    """Folder for the index and the packing plans, on a file system that all hosts share; empty: vita_index next to the mixture."""
    index_processes: Count = 0
    """Processes that index; 0: one for each CPU core this process may use."""
    num_workers: Count = 0
    """Loader processes per data-parallel rank; 0 loads in the training process."""
    prefetch: Size = 2
    """Packs that each loader process keeps ready."""
    loader_seconds: Wait = 1200.0
    """Longest wait for a pack from the loader processes; then the run stops with a message that names the file each of them reads. Less
    than health.hang_minutes, which does not know the files. 0 waits for ever."""
    tokenize_once: Flag = True
    """One rank of each host reads and tokenises a pack and hands it to the other ranks there that need it, through shared memory. false:
    each rank reads and tokenises every pack that it needs."""
    seed: Integer = 1234
    """Seed of the packing plan."""
    quarantine: Text = ""
    """JSONL file for samples that failed to decode; empty: quarantine.jsonl in the checkpoint folder."""
    failure_budget: Share = 0.01
    """Share of a source's rows, each counted once, that may be faulty or have unusable media before the run stops. Up to ten are
    always tolerated."""
    video_reader: VideoReader = "pyav"
    """pyav | decord (x86-64) | torchcodec (where its FFmpeg libraries are). The last two are refused for containers of which they
    take other frames."""
    resize: Resize = "exact"
    """exact (Pillow's bicubic, as published) | fast (torch's, at most 2/255 off in pictures; a video's edge differs more)."""
    scale_in_decoder: Flag = False
    """Scale video frames while they are decoded (swscale, with pyav): less memory and time, other pixels."""
    decode_seconds: Positive = 60.0
    """Hard deadline of decoding one picture or video on one rank, 0.25 more for each frame it takes of a video; then its decoder is
    killed and the sample masked."""
    decode_memory: Annotated[int, Whole(least=1 << 28)] = 4 << 30
    """Bytes a decoder process may allocate."""
    max_media_bytes: Size = 16 << 30
    """Largest picture or video file."""
    max_pixels: Size = 150_000_000
    """Most pixels of a picture or of one video frame, before it is cut or scaled."""
    max_video_frames: Size = 2_000_000
    """Most frames of a video, taken or not."""
    max_video_seconds: Positive = 21600.0
    """Longest video."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(Section):
    """Sizes of the parallel axes; data parallel is what remains of the world."""

    tp: Size = 1
    """Tensor parallel; above 1 it always uses sequence parallel."""
    pp: Size = 1
    """Pipeline parallel; the tower lives on the first stage."""
    virtual_stages: Size = 1
    """Chunks of layers on each pipeline rank (an interleaved pipeline). A micro-batch passes the ranks so many times: bubbles shrink,
    transfers grow."""
    layer_split: LayerSplit = "even"
    """even | balanced. even: every chunk has the same number of decoder layers; pp * virtual_stages must divide them. balanced: the first
    and the last chunk get fewer, by what tower and head cost."""
    stage_layers: Sizes = ()
    """Decoder layers of each chunk, in the model's order, pp * virtual_stages numbers; empty: layer_split decides."""
    cp: Size = 1
    """Context parallel."""
    ulysses: Size = 1
    """Context-parallel ranks that make up one ring rank, by swapping tokens for heads; divides cp and a rank's heads. 1: ring alone."""
    cp_per_node: Count = 0
    """Neighbouring context-parallel ranks that share a node. Keys and values of other nodes cross its border once for all of them. 0: as
    many as the launcher's LOCAL_WORLD_SIZE says; the value of cp: all of them, so each rank is sent its keys directly."""
    ring_two_groups: Flag = False
    """Give the ring a second process group, so that what a rank sends and what it receives are in different ones."""
    ring_gradients: Precision = "fp32"
    """Gradients of keys and values travel between ring ranks in fp32, or in bf16 (half the bytes, rounded; needs precision=bf16). They add
    up in fp32."""
    vision_parallel: VisionParallel = "balanced"
    """balanced (every rank holds the tower, tiles are shared out over tp x cp) | tensor (tp ranks share the tower's weights, tiles
    are shared out over cp)."""
    overlap_grad_reduce: Overlap = "auto"
    """Sum gradients over dp and cp while the last backward pass of a step goes on: auto (on accelerators) | always | never."""
    overlap_param_gather: Overlap = "auto"
    """Gather updated weights while the next forward pass goes on: auto (on accelerators) | always | never. Needs overlap_grad_reduce."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """Optimisation."""

    steps: Size = 1000
    """Optimizer steps; warm-up and cosine span them. A resumed run may have more or fewer: its schedule then spans the new number."""
    global_batch: Size = 8
    """Packs per optimizer step, over all data-parallel ranks; one pack is one micro-batch."""
    even_steps: Count = 0
    """Consecutive steps that exchange packs. The packs of a step then have about the same work, and a pipeline waits less for the
    heaviest. They also have like lengths: long documents meet long ones. 0: steps keep the order of the plan."""
    objective: Annotated[str, Line(), OneOf(names=objective_names)] = SUPERVISED
    """What is optimised: supervised (cross-entropy of the supervised tokens), or the name of one that a plugin registered."""
    modules: Annotated[tuple[Module, ...], Listed(least=1)] = MODULES
    """Modules that train; the others are frozen: vision, projector, language."""
    lr: Real = 1e-5
    """Peak learning rate."""
    min_lr: Real = 1e-7
    """Final learning rate of the cosine."""
    warmup_fraction: PartialShare = 0.03
    """Share of the steps spent in linear warm-up."""
    vision_lr_mult: Factor = 1.0
    """Learning-rate multiplier of the tower."""
    projector_lr_mult: Factor = 1.0
    """Learning-rate multiplier of the projector."""
    language_lr_mult: Factor = 1.0
    """Learning-rate multiplier of the language model."""
    vision_layer_decay: Factor = 1.0
    """Extra multiplier per tower layer, counted down from the last: layer i gets decay ** (num_layers - 1 - i)."""
    weight_decay: Factor = 0.0
    """AdamW weight decay; never on biases, norms, LayerScale, class token, position embeddings and the newline projector's newline."""
    beta1: PartialShare = 0.9
    """Adam beta 1."""
    beta2: PartialShare = 0.999
    """Adam beta 2."""
    eps: Real = 1e-8
    """Adam epsilon."""
    clip_grad: Factor = 1.0
    """Global gradient-norm limit; 0 turns clipping off."""
    precision: Precision = "bf16"
    """bf16 | fp32. Optimizer state is fp32 in both."""
    grad_reduce: Precision = "fp32"
    """Gradients of the weights add up over micro-batches, dp and cp in fp32, or in bf16 (half the bytes, rounded; needs precision=bf16)."""
    recompute: Recompute = "none"
    """What the backward pass computes again: none | selective (SwiGLU) | mlp (up to its last matrix product) | full_but_attention
    (layers, whose attention results are kept) | full (layers). The last two recompute the tower's layers as well."""
    recompute_layers: Count = 0
    """Decoder layers at the start of each pipeline stage to which `recompute` applies; 0: all of them."""
    offload: Offload = "none"
    """none | inputs (the inputs of recomputed layers wait in host memory; with full_but_attention and full)."""
    seed: Integer = 1234
    """Seed of the initial weights."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """Saving, resuming and starting."""

    directory: Text = "checkpoints"
    """Folder of this run: step_XXXXXXX folders, metrics.jsonl, quarantine.jsonl."""
    save_every: Size = 500
    """Steps between checkpoints; the last step is always saved."""
    save_minutes: Wait = 0.0
    """Minutes after the last checkpoint at which a step is saved, too; 0: save_every alone decides. The first rank's clock counts."""
    keep: Count = 2
    """Newest checkpoints kept; 0 keeps all."""
    store: Text = ""
    """Address of a folder in an object store, such as s3://bucket/runs/a, that gets every checkpoint too, behind training's back; empty:
    none. A run whose own folder is empty continues from the newest whole checkpoint there. Needs fsspec and, for s3, s3fs."""
    keep_unsent: Flag = False
    """Never prune a checkpoint that waits for its way to `store`. The disk fills up while the store refuses."""
    init_from: Text = ""
    """Weights to start from when the folder holds no checkpoint: a native run or step folder, or its address in a store. Weights only."""
    background: Flag = False
    """Write checkpoints in a thread while training goes on, from a copy in host memory; the last one is always waited for."""
    resume: Flag = True
    """Continue from the newest checkpoint in the folder if there is one."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Section):
    """One training run."""

    name: Text = "run"
    """Shown in logs and tables."""
    plugins: Texts = ()
    """Python modules to import before the recipe is checked: they register towers, projectors or formats of your own. They are looked for
    next to the recipe, then on PYTHONPATH."""
    stage: Optional[Stage] = None
    """1 to 4: take the paper's settings of that stage as defaults (presets.py)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Parallel axes."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters in place of whole modules."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving and starting."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Held-out loss."""
    health: HealthConfig = field(default_factory=HealthConfig)
    """Hangs and bad numbers."""
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    """Kernels."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    """A trace."""
    debug: DebugConfig = field(default_factory=DebugConfig)
    """Dumps of modules."""
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    """Logs."""
