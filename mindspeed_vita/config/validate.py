"""Checks that fields agree with each other, the layout and the world size, before a device or a process group is touched."""

from __future__ import annotations

import math

from mindspeed_vita.config.languages import language_names, language_traits
from mindspeed_vita.config.objectives import objective_names
from mindspeed_vita.config.projectors import projector_names, projector_traits
from mindspeed_vita.config.recipe import MODULES, LanguageConfig, ModelConfig, Recipe
from mindspeed_vita.config.towers import tower_names


def validate(recipe: Recipe, world_size: int = 1, *, uneven_pipeline: bool = False) -> None:
    """Refuses a recipe that cannot run on world_size processes.

    Args:
        recipe: a run.
        world_size: its processes.
        uneven_pipeline: something else says how many layers each pipeline stage has, so that they need not divide.

    Raises:
        ValueError: one message that lists every problem: what was found, what was expected, what to do.
    """
    problems = [*_model(recipe.model), *_choices(recipe), *_layout(recipe, world_size, uneven_pipeline), *_train(recipe)]
    if problems:
        raise ValueError(f"recipe {recipe.name!r}: " + "; ".join(problems))


def validate_model(model: ModelConfig) -> None:
    """The checks that concern the architecture alone.

    Raises:
        ValueError: as validate.
    """
    problems = _model(model)
    if problems:
        raise ValueError("model: " + "; ".join(problems))


def _divides(name: str, value: int, by_name: str, by: int, advice: str) -> list[str]:
    return [] if by > 0 and value % by == 0 else [f"{by_name}={by} does not divide {name}={value}; {advice}"]


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> list[str]:
    return [] if value in choices else [f"{name}={value!r}; expected one of {', '.join(choices)}"]


def _model(model: ModelConfig) -> list[str]:
    vision, language = model.vision, model.language
    sizes = [
        *((f"model.vision.{name}", getattr(vision, name)) for name in ("tile_size", "patch_size", "hidden_size", "num_layers")),
        ("model.vision.num_heads", vision.num_heads),
        ("model.vision.ffn_hidden_size", vision.ffn_hidden_size),
        ("model.projector.pixel_shuffle", model.projector.pixel_shuffle),
        ("model.projector.hidden_size", model.projector.hidden_size),
        *((f"model.language.{name}", getattr(language, name)) for name in ("num_layers", "hidden_size", "num_heads", "num_kv_heads")),
        ("model.language.ffn_hidden_size", language.ffn_hidden_size),
        ("model.language.vocab_size", language.vocab_size),
        ("model.lm_head_chunk", model.lm_head_chunk),
    ]
    small = [f"{name}={value}; expected at least 1" for name, value in sizes if value < 1]
    if small:
        return small  # nothing below can be said about sizes that are none
    unknown = [
        *_one_of("model.language.family", language.family, language_names()),
        *_one_of("model.projector.kind", model.projector.kind, projector_names()),
    ]
    if unknown:
        return unknown
    return [
        *_head_width(language),
        *_divides("model.vision.tile_size", vision.tile_size, "model.vision.patch_size", vision.patch_size, "use a divisor"),
        *_shuffle(model),
        *_one_of("model.vision.tower", vision.tower, tower_names()),
        *_one_of("model.vision.norm", vision.norm, ("layer_norm", "rms_norm")),
        *_one_of("model.vision.normalization", vision.normalization, ("imagenet", "clip", "siglip")),
        *_divides("model.vision.hidden_size", vision.hidden_size, "model.vision.num_heads", vision.num_heads, "use a divisor"),
        *_divides("model.language.num_heads", language.num_heads, "model.language.num_kv_heads", language.num_kv_heads, "use a divisor"),
        *_one_of("model.lm_head", model.lm_head, ("masked", "chunked", "original")),
        *_rope(model.language),
    ]


def _head_width(language: LanguageConfig) -> list[str]:
    problems = []
    if not language_traits(language.family).head_dim:
        if language.head_width:
            problems.append(
                f"model.language.head_width={language.head_width}; heads of the family {language.family} are hidden_size / num_heads wide, "
                "leave it out"
            )
        hidden, heads = language.hidden_size, language.num_heads
        problems += _divides("model.language.hidden_size", hidden, "model.language.num_heads", heads, "use a divisor")
    if language.head_dim < 2 or language.head_dim % 2:
        problems.append(f"width of a head={language.head_dim}; rotary positions need an even one")
    return problems


def _shuffle(model: ModelConfig) -> list[str]:
    if projector_traits(model.projector.kind).padding:
        return []
    advice = "use a divisor, or model.projector.kind=mlp_stride, which fills the grid up"
    return _divides("the patch grid", model.vision.grid, "model.projector.pixel_shuffle", model.projector.pixel_shuffle, advice)


def _rope(language: LanguageConfig) -> list[str]:
    scaling, name = language.rope_scaling, "model.language.rope_scaling"
    problems = _one_of(f"{name}.kind", scaling.kind, ("none", "linear", "ntk", "yarn", "longrope", "llama3"))
    if scaling.kind != "none" and scaling.factor < 1:
        problems.append(f"{name}.factor={scaling.factor}; expected at least 1")
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    if scaling.kind == "llama3" and not 0 < low < high:
        problems.append(f"{name}.low_freq_factor={low} and high_freq_factor={high}; expected 0 < low_freq_factor < high_freq_factor")
    if scaling.kind == "longrope":
        wanted = language.head_dim // 2
        for key, values in (("short_factor", scaling.short_factor), ("long_factor", scaling.long_factor)):
            if len(values) != wanted:
                problems.append(f"{name}.{key} has {len(values)} numbers; expected {wanted}, one for each frequency of a head")
    return problems


def _choices(recipe: Recipe) -> list[str]:
    data, train = recipe.data, recipe.train
    problems = [
        *_one_of("data.packing", data.packing, ("same_source", "cross_source")),
        *_one_of("data.tiling", data.tiling, ("dynamic", "anyres", "fixed")),
        *_one_of("data.pixels", data.pixels, ("shown", "published")),
        *_one_of("data.loss_weighting", data.loss_weighting, ("token", "sample")),
        *_one_of("data.frame_sampler", data.frame_sampler, ("uniform", "legacy", "time")),
        *_one_of("data.video_reader", data.video_reader, ("pyav", "decord", "torchcodec")),
        *_one_of("data.resize", data.resize, ("exact", "fast")),
        *_one_of("train.objective", train.objective, objective_names()),
        *_one_of("train.precision", train.precision, ("bf16", "fp32")),
        *_one_of("train.recompute", train.recompute, ("none", "selective", "full")),
    ]
    if data.frame_sampler == "time" and data.video_reader != "pyav":
        problems.append(f"data.frame_sampler=time with data.video_reader={data.video_reader}; only pyav reads frames by time")
    if not 1 <= data.min_tiles <= data.max_tiles:
        problems.append(f"data.min_tiles={data.min_tiles} and data.max_tiles={data.max_tiles}; expected 1 <= min_tiles <= max_tiles")
    unknown = [name for name in train.modules if name not in MODULES]
    if unknown or not train.modules:
        problems.append(f"train.modules={list(train.modules)}; expected at least one of {', '.join(MODULES)}")
    return problems


def _layout(recipe: Recipe, world_size: int, uneven_pipeline: bool) -> list[str]:
    layout, language = recipe.parallel, recipe.model.language
    if min(layout.tp, layout.pp, layout.cp) < 1:
        return [f"parallel sizes must be at least 1, found tp={layout.tp} pp={layout.pp} cp={layout.cp}"]
    problems = []
    model_size = layout.tp * layout.pp * layout.cp
    if world_size % model_size:
        problems.append(
            f"tp*pp*cp={layout.tp}*{layout.pp}*{layout.cp}={model_size} does not divide the {world_size} processes that were started; "
            f"start a multiple of {model_size} (torchrun --nproc_per_node) or change the sizes"
        )
    for name, value in (
        ("model.language.num_heads", language.num_heads),
        ("model.language.num_kv_heads", language.num_kv_heads),
        ("model.language.ffn_hidden_size", language.ffn_hidden_size),
        ("model.language.vocab_size", language.vocab_size),
    ):
        problems += _divides(name, value, "parallel.tp", layout.tp, "use a divisor")
    problems += _tower(recipe)
    problems += _ulysses(recipe)
    if not uneven_pipeline:
        problems += _divides("model.language.num_layers", language.num_layers, "parallel.pp", layout.pp, "use a divisor")
    if layout.pp > 1 and language.tie_embeddings:
        problems.append(f"parallel.pp={layout.pp} with model.language.tie_embeddings: two stages would share a table; use pp=1 and more tp")
    granule = 2 * layout.cp * layout.tp
    if recipe.data.seq_length % granule:
        up = -(-recipe.data.seq_length // granule) * granule
        problems.append(
            f"data.seq_length={recipe.data.seq_length} is not a multiple of 2*cp*tp=2*{layout.cp}*{layout.tp}={granule}; use {up}"
        )
    return problems + _batch(recipe, world_size, model_size)


def _ulysses(recipe: Recipe) -> list[str]:
    layout, language = recipe.parallel, recipe.model.language
    if layout.ulysses == 1:
        return []
    problems = _divides("parallel.cp", layout.cp, "parallel.ulysses", layout.ulysses, "the ring has cp / ulysses places; use a divisor")
    for name, heads in (("num_heads", language.num_heads), ("num_kv_heads", language.num_kv_heads)):
        if heads % layout.tp == 0:
            advice = "Ulysses deals whole heads; use a divisor, less tp, or ulysses=1 (the ring alone takes any heads)"
            problems += _divides(f"model.language.{name} / parallel.tp", heads // layout.tp, "parallel.ulysses", layout.ulysses, advice)
    return problems


def _tower(recipe: Recipe) -> list[str]:
    layout, vision = recipe.parallel, recipe.model.vision
    problems = _one_of("parallel.vision_parallel", layout.vision_parallel, ("balanced", "tensor"))
    if layout.vision_parallel == "tensor":
        advice = "parallel.vision_parallel=tensor cuts the tower into equal columns; use a divisor, or balanced"
        problems += _divides("model.vision.ffn_hidden_size", vision.ffn_hidden_size, "parallel.tp", layout.tp, advice)
    return problems


def _batch(recipe: Recipe, world_size: int, model_size: int) -> list[str]:
    if world_size % model_size:
        return []
    return _divides("train.global_batch", recipe.train.global_batch, "data parallel size", world_size // model_size, "use a multiple of it")


def _train(recipe: Recipe) -> list[str]:
    train = recipe.train
    problems = []
    for name, value, low in (
        ("train.steps", train.steps, 1),
        ("train.global_batch", train.global_batch, 1),
        ("data.seq_length", recipe.data.seq_length, 1),
        ("data.group", recipe.data.group, 1),
        ("checkpoint.save_every", recipe.checkpoint.save_every, 1),
        ("checkpoint.keep", recipe.checkpoint.keep, 0),
        ("logging.every", recipe.logging.every, 1),
        ("data.num_workers", recipe.data.num_workers, 0),
        ("data.index_processes", recipe.data.index_processes, 0),
        ("data.prefetch", recipe.data.prefetch, 1),
        ("data.decode_memory", recipe.data.decode_memory, 1 << 28),
        ("data.max_media_bytes", recipe.data.max_media_bytes, 1),
        ("data.max_pixels", recipe.data.max_pixels, 1),
        ("data.max_video_frames", recipe.data.max_video_frames, 1),
        ("data.max_images", recipe.data.max_images, 1),
        ("data.max_frames", recipe.data.max_frames, 1),
        ("train.clip_grad", train.clip_grad, 0),
        ("train.weight_decay", train.weight_decay, 0),
        ("train.vision_lr_mult", train.vision_lr_mult, 0),
        ("train.projector_lr_mult", train.projector_lr_mult, 0),
        ("train.language_lr_mult", train.language_lr_mult, 0),
        ("train.vision_layer_decay", train.vision_layer_decay, 0),
    ):
        if value < low:
            problems.append(f"{name}={value}; expected at least {low}")
    for name, share in (("train.beta1", train.beta1), ("train.beta2", train.beta2)):
        if not 0 <= share < 1:
            problems.append(f"{name}={share}; expected at least 0 and less than 1")
    for name, number in (("decode_seconds", recipe.data.decode_seconds), ("max_video_seconds", recipe.data.max_video_seconds)):
        if not number > 0:
            problems.append(f"data.{name}={number}; expected a positive number")
    if not 0 <= recipe.data.loader_seconds < math.inf:
        problems.append(f"data.loader_seconds={recipe.data.loader_seconds}; expected seconds, or 0 to wait for ever")
    if not 0 <= recipe.data.failure_budget <= 1:
        problems.append(f"data.failure_budget={recipe.data.failure_budget}; expected a share between 0 and 1")
    if not 0 < recipe.data.max_fps < math.inf:
        problems.append(f"data.max_fps={recipe.data.max_fps}; expected a positive number")
    if not 0 <= train.min_lr <= train.lr < math.inf:
        problems.append(f"train.min_lr={train.min_lr} and train.lr={train.lr}; expected 0 <= min_lr <= lr")
    if not 0 <= train.warmup_fraction < 1:
        problems.append(f"train.warmup_fraction={train.warmup_fraction}; expected a share between 0 and 1")
    return problems
