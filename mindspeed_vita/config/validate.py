"""Checks that fields agree with each other, the layout and the world size, before a device or a process group is touched.

What one field may be is its type (kinds.py, choices.py), which the loader checks.
"""

from __future__ import annotations

import math

from mindspeed_vita.addresses import is_address
from mindspeed_vita.config.build import check, listed
from mindspeed_vita.config.languages import language_traits
from mindspeed_vita.config.lora import LORA_TARGETS
from mindspeed_vita.config.projectors import projector_traits
from mindspeed_vita.config.recipe import LanguageConfig, ModelConfig, ProfileConfig, Recipe
from mindspeed_vita.config.recompute import WHOLE_LAYERS, recompute_problems


def validate(recipe: Recipe, world_size: int = 1, *, uneven_pipeline: bool = False) -> None:
    """Refuses a recipe that cannot run on world_size processes.

    Args:
        recipe: a run.
        world_size: its processes.
        uneven_pipeline: something else says how many layers each pipeline stage has, so that they need not divide.

    Raises:
        ValueError: one message that lists every problem: what was found, what was expected, what to do.
    """
    where = f"recipe {recipe.name!r}"
    check(recipe, where, root=Recipe)  # the loader did that for what it read, but not for what code put together
    problems = [*_model(recipe.model), *_data(recipe), *_layout(recipe, world_size, uneven_pipeline), *_train(recipe)]
    problems += [*_lora(recipe), *_checkpoint(recipe), *_health(recipe), *_eval(recipe), *_profile(recipe, world_size)]
    problems += recompute_problems(recipe, uneven_pipeline=uneven_pipeline)
    if problems:
        raise ValueError(listed(where, problems))


def validate_model(model: ModelConfig) -> None:
    """The checks that concern the architecture alone.

    Raises:
        ValueError: as validate.
    """
    check(model, "model", prefix="model.", root=Recipe)
    problems = _model(model)
    if problems:
        raise ValueError(listed("model", problems))


def _divides(name: str, value: int, by_name: str, by: int, advice: str) -> list[str]:
    return [] if value % by == 0 else [f"{by_name}={by} does not divide {name}={value}; {advice}"]


def _model(model: ModelConfig) -> list[str]:
    vision, language = model.vision, model.language
    return [
        *_head_width(language),
        *_divides("model.vision.tile_size", vision.tile_size, "model.vision.patch_size", vision.patch_size, "use a divisor"),
        *_shuffle(model),
        *_divides("model.vision.hidden_size", vision.hidden_size, "model.vision.num_heads", vision.num_heads, "use a divisor"),
        *_divides("model.language.num_heads", language.num_heads, "model.language.num_kv_heads", language.num_kv_heads, "use a divisor"),
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
    problems = []
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


def _data(recipe: Recipe) -> list[str]:
    data, problems = recipe.data, []
    if data.frame_sampler == "time" and data.video_reader != "pyav":
        problems.append(f"data.frame_sampler=time with data.video_reader={data.video_reader}; only pyav reads frames by time")
    if not 1 <= data.min_tiles <= data.max_tiles:
        problems.append(f"data.min_tiles={data.min_tiles} and data.max_tiles={data.max_tiles}; expected 1 <= min_tiles <= max_tiles")
    return problems


def _layout(recipe: Recipe, world_size: int, uneven_pipeline: bool) -> list[str]:
    layout, language = recipe.parallel, recipe.model.language
    problems = []
    model_size = layout.tp * layout.pp * layout.cp
    if world_size % model_size:
        problems.append(
            f"tp*pp*cp={layout.tp}*{layout.pp}*{layout.cp}={model_size} does not divide the number of processes, {world_size:,}; use a "
            f"multiple of {model_size} (torchrun --nproc_per_node, NPROC_PER_NODE of the stage scripts, `vita check --processes`, "
            "`vita plan --devices`), or change the sizes"
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
    problems += _nodes(recipe)
    if not uneven_pipeline:
        problems += _stages(recipe)
    granule = 2 * layout.cp * layout.tp
    if recipe.data.seq_length % granule:
        up = -(-recipe.data.seq_length // granule) * granule
        problems.append(
            f"data.seq_length={recipe.data.seq_length} is not a multiple of 2*cp*tp=2*{layout.cp}*{layout.tp}={granule}; use {up}"
        )
    return problems + _batch(recipe, world_size, model_size)


def _stages(recipe: Recipe) -> list[str]:
    layout, num_layers = recipe.parallel, recipe.model.language.num_layers
    chunks, problems = layout.pp * layout.virtual_stages, []
    if layout.virtual_stages > 1 and layout.pp == 1:
        problems.append(f"parallel.virtual_stages={layout.virtual_stages} with parallel.pp=1; only a pipeline has virtual stages, use 1")
    size, number = "parallel.pp", f"parallel.pp={layout.pp}"
    if layout.virtual_stages > 1:
        size, number = "parallel.pp * parallel.virtual_stages", f"{layout.pp} * {layout.virtual_stages}"
    if layout.stage_layers:
        given, total = f"parallel.stage_layers={list(layout.stage_layers)}", sum(layout.stage_layers)
        if layout.layer_split != "even":
            problems.append(f"{given} and parallel.layer_split={layout.layer_split}; leave one of them out")
        if len(layout.stage_layers) != chunks:
            problems.append(f"{given} has {len(layout.stage_layers)} numbers; expected one for each of {number} stages")
        if total != num_layers:
            problems.append(f"{given} has {total} layers in all; expected model.language.num_layers={num_layers}")
    elif layout.layer_split == "even":
        problems += _divides("model.language.num_layers", num_layers, size, chunks, "use a divisor, or parallel.layer_split=balanced")
    elif chunks > num_layers:
        problems.append(f"{size}={chunks} is more than model.language.num_layers={num_layers}; every stage needs a layer, use less")
    return problems


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


def _nodes(recipe: Recipe) -> list[str]:
    layout = recipe.parallel
    if not layout.cp_per_node:
        return []
    problems = []
    if layout.cp % layout.cp_per_node and layout.cp_per_node % layout.cp:
        found = f"parallel.cp_per_node={layout.cp_per_node} and parallel.cp={layout.cp}"
        problems.append(f"{found}: the ranks of a pack would fill a part of a node; use a multiple or a divisor of parallel.cp, or 0")
    if layout.cp_per_node % layout.ulysses and layout.ulysses % layout.cp_per_node:
        found = f"parallel.cp_per_node={layout.cp_per_node} and parallel.ulysses={layout.ulysses}"
        problems.append(f"{found}: a ring rank would lie on a border; use a multiple or a divisor of parallel.ulysses")
    return problems


def _tower(recipe: Recipe) -> list[str]:
    layout, vision = recipe.parallel, recipe.model.vision
    if layout.vision_parallel != "tensor":
        return []
    advice = "parallel.vision_parallel=tensor cuts the tower into equal columns; use a divisor, or balanced"
    return _divides("model.vision.ffn_hidden_size", vision.ffn_hidden_size, "parallel.tp", layout.tp, advice)


def _batch(recipe: Recipe, world_size: int, model_size: int) -> list[str]:
    if world_size % model_size:
        return []
    layout, dp, packs = recipe.parallel, world_size // model_size, recipe.train.global_batch
    problems = _divides("train.global_batch", packs, "data parallel size", dp, "use a multiple of it")
    if not problems and layout.virtual_stages > 1:
        advice = "virtual stages take packs in groups of that size; use a multiple of it, or virtual_stages=1"
        problems = _divides("train.global_batch / data parallel size", packs // dp, "parallel.pp", layout.pp, advice)
    return problems


def _train(recipe: Recipe) -> list[str]:
    train, parallel = recipe.train, recipe.parallel
    problems = []
    if not 0 <= train.min_lr <= train.lr < math.inf:
        problems.append(f"train.min_lr={train.min_lr} and train.lr={train.lr}; expected 0 <= min_lr <= lr")
    if train.grad_reduce == "bf16" and train.precision != "bf16":
        problems.append(f"train.grad_reduce=bf16 with train.precision={train.precision}; use precision=bf16, or leave grad_reduce out")
    if parallel.ring_gradients == "bf16" and train.precision != "bf16":
        found = f"parallel.ring_gradients=bf16 with train.precision={train.precision}"
        problems.append(f"{found}; use precision=bf16, or leave ring_gradients out")
    if parallel.overlap_param_gather == "always" and parallel.overlap_grad_reduce == "never":
        problems.append(
            "parallel.overlap_param_gather=always with parallel.overlap_grad_reduce=never; weights are gathered by the buckets that "
            "gradients are reduced in: leave overlap_grad_reduce out or set it to always"
        )
    return problems


def _lora(recipe: Recipe) -> list[str]:
    lora, train, problems = recipe.lora, recipe.train, []
    if not lora.rank:
        if lora.targets or lora.base:
            problems.append("lora.targets or lora.base without lora.rank: no adapter trains; set lora.rank (16, say), or leave them out")
        return problems
    if not lora.base and not recipe.checkpoint.init_from:
        problems.append(f"lora.rank={lora.rank} without weights to adapt; name a folder in checkpoint.init_from")
    frozen = [part for part in lora.parts if part not in train.modules]
    if frozen:
        found = f"lora.parts={list(lora.parts)} and train.modules={list(train.modules)}"
        problems.append(f"{found}: {', '.join(frozen)} would be frozen; add it to train.modules, or leave it out of lora.parts")
    known = [name for part in lora.parts for name in LORA_TARGETS[part]]
    unknown = [name for name in lora.targets if name not in known]
    if unknown:
        found = f"lora.targets={list(lora.targets)}: {', '.join(unknown)} is no layer of lora.parts"
        problems.append(f"{found}; expected some of {', '.join(known)}")
    if "vision" in lora.parts and recipe.parallel.vision_parallel == "tensor":
        problems.append("lora.parts names vision with parallel.vision_parallel=tensor, which cuts its layers; use balanced")
    again = {"vision": WHOLE_LAYERS, "language": ("mlp",)}  # what is recomputed there without the random state
    for part in lora.parts:
        if lora.dropout and train.recompute in again.get(part, ()):
            problems.append(
                f"lora.dropout={lora.dropout} in {part} with train.recompute={train.recompute}, which recomputes it with other random "
                "numbers; use lora.dropout=0, or another train.recompute"
            )
    return problems


def _checkpoint(recipe: Recipe) -> list[str]:
    told, problems = recipe.checkpoint, []
    if is_address(told.directory):
        problems.append(
            f"checkpoint.directory={told.directory} is an address; set checkpoint.store to it, and checkpoint.directory to a folder"
        )
    if told.store and not is_address(told.store):
        problems.append(f"checkpoint.store={told.store} is no address; expected one such as s3://bucket/runs/a, or leave it out")
    if told.keep_unsent and not told.store:
        problems.append("checkpoint.keep_unsent=true without checkpoint.store: nothing is sent; set checkpoint.store, or leave it out")
    return problems


def _health(recipe: Recipe) -> list[str]:
    factor = recipe.health.spike_factor
    if not 0 < factor <= 1:
        return []
    return [f"health.spike_factor={factor:g} makes a spike of every usual step; expected more than 1, such as 10, or 0 for no such check"]


def _eval(recipe: Recipe) -> list[str]:
    told = recipe.eval
    if told.mixture:
        return []
    useless = [("patience", told.patience), ("keep_best", told.keep_best), ("gate", told.gate)]
    return [
        f"eval.{name}={str(value).lower()} without eval.mixture: no held-out loss is measured; set eval.mixture, or leave eval.{name} out"
        for name, value in useless
        if value
    ]


def _profile(recipe: Recipe, world_size: int) -> list[str]:
    profile, last = recipe.profile, recipe.train.steps
    steps, ranks = list(profile.steps), list(profile.ranks)
    if not steps:
        useless = f"profile.ranks={ranks} without profile.steps: nothing is recorded; set profile.steps, or leave profile.ranks out"
        return [useless] if profile != ProfileConfig() else []
    problems = []
    if len(steps) != 2 or steps[0] > steps[-1]:
        problems.append(f"profile.steps={steps}; expected the first and the last step to record, such as [10, 12]")
    elif steps[1] > last:
        problems.append(f"profile.steps={steps} ends after train.steps={last}; expected steps up to {last}")
    if not ranks or len(set(ranks)) < len(ranks) or max(ranks) >= world_size:
        wanted = f"different ranks from 0 to {world_size - 1}, as {world_size} processes were started"
        problems.append(f"profile.ranks={ranks}; expected {wanted}")
    return problems
