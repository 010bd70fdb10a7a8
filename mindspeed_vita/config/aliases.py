"""Names that other trainers give to settings, and what they are here. Used for messages only: no alias is accepted as a key."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from typing import Iterator

from mindspeed_vita.choices import MODULES, PRECISIONS, RECOMPUTES

_STEPS = (
    "train.steps, which counts optimizer steps; `vita data stats RECIPE` prints the steps of one epoch"
)
_BATCH = "train.global_batch, the packs of one optimizer step over all ranks; each pack holds data.seq_length tokens and is one micro-batch"
_ACCUMULATION = "train.global_batch: each data-parallel rank accumulates global_batch / dp packs per step"
_WARMUP = "train.warmup_fraction, a share of train.steps (0.03 is 3%)"
_PRECISION = f"train.precision ({' or '.join(PRECISIONS)})"
_MODULES = f"train.modules, the list of what trains: {', '.join(MODULES)}"
_WEIGHTS = "checkpoint.init_from, a native folder (`vita convert --to native` makes one from Hugging Face weights)"
_DATA = "data.mixture, a YAML file that names the data files (`vita data import` makes one from CSV, LLaVA JSON or a folder)"
_RECOMPUTE = f"train.recompute ({', '.join(RECOMPUTES)})"

ALIASES = {
    **dict.fromkeys(("epochs", "epoch", "num_epochs", "num_train_epochs", "max_epochs", "n_epochs", "train_epochs"), _STEPS),
    **dict.fromkeys(("max_steps", "num_steps", "train_iters", "iterations", "total_steps", "max_train_steps", "iters"), "train.steps"),
    **dict.fromkeys(("learning_rate", "peak_lr", "max_lr", "base_lr"), "train.lr"),
    **dict.fromkeys(("min_learning_rate", "lr_min", "end_lr"), "train.min_lr"),
    **dict.fromkeys(
        ("batch_size", "train_batch_size", "per_device_train_batch_size", "micro_batch_size", "per_device_batch_size", "global_batch_size",
         "train_micro_batch_size_per_gpu"), _BATCH
    ),
    **dict.fromkeys(("gradient_accumulation_steps", "gradient_accumulation", "accumulate_grad_batches", "grad_accum"), _ACCUMULATION),
    **dict.fromkeys(("warmup_steps", "warmup_ratio", "lr_warmup_fraction", "lr_warmup_iters", "warmup"), _WARMUP),
    **dict.fromkeys(
        ("lr_scheduler", "lr_scheduler_type", "lr_decay_style", "scheduler"),
        "no key: the schedule is a linear warm-up (train.warmup_fraction) and a cosine from train.lr to train.min_lr",
    ),
    **dict.fromkeys(("optim", "optimizer"), "no key: the optimizer is AdamW (train.beta1, train.beta2, train.eps, train.weight_decay)"),
    **dict.fromkeys(("max_grad_norm", "clip_grad_norm", "gradient_clip_val", "gradient_clipping", "grad_clip"), "train.clip_grad"),
    **dict.fromkeys(("bf16", "fp16", "fp32", "dtype", "torch_dtype", "mixed_precision"), _PRECISION),
    **dict.fromkeys(
        ("gradient_checkpointing", "activation_checkpointing", "recompute_granularity", "recompute_activations"), _RECOMPUTE
    ),
    **dict.fromkeys(("recompute_num_layers", "num_recompute_layers"), "train.recompute_layers, layers at the start of each pipeline stage"),
    **dict.fromkeys(("offload_activations", "activation_offload", "cpu_offload", "cpu_offloading"), "train.offload (none or inputs)"),
    **dict.fromkeys(("adam_beta1", "betas"), "train.beta1 and train.beta2"),
    "adam_beta2": "train.beta2",
    **dict.fromkeys(("adam_epsilon", "adam_eps", "epsilon"), "train.eps"),
    **dict.fromkeys(
        ("freeze", "freeze_vision_tower", "freeze_backbone", "freeze_vit", "freeze_llm", "tune_mm_mlp_adapter", "trainable",
         "freeze_multi_modal_projector"), _MODULES
    ),
    **dict.fromkeys(("vision_lr", "mm_vision_tower_lr", "vision_tower_lr"), "train.vision_lr_mult, a multiplier of train.lr"),
    **dict.fromkeys(("projector_lr", "mm_projector_lr"), "train.projector_lr_mult, a multiplier of train.lr"),
    **dict.fromkeys(
        ("max_length", "max_len", "max_seq_length", "max_seq_len", "seq_len", "sequence_length", "cutoff_len", "model_max_length",
         "max_tokens", "context_length"), "data.seq_length, the tokens of one pack"
    ),
    **dict.fromkeys(("dataset", "datasets", "dataset_name", "data_path", "data_paths", "train_file", "train_data", "annotation"), _DATA),
    **dict.fromkeys(("image_folder", "image_root", "image_dir", "media_dir", "images"), "data.media_root"),
    **dict.fromkeys(("chat_template", "prompt_template", "conv_version"), "data.template"),
    **dict.fromkeys(("tokenizer_path", "tokenizer_name", "tokenizer_name_or_path"), "data.tokenizer"),
    **dict.fromkeys(("dataloader_num_workers", "workers", "preprocessing_num_workers"), "data.num_workers, the loader processes per rank"),
    **dict.fromkeys(("fps", "video_fps"), "data.max_fps"),
    **dict.fromkeys(("num_frames", "video_maxlen", "nframes"), "data.max_frames"),
    **dict.fromkeys(("max_num", "max_dynamic_patch", "max_patches"), "data.max_tiles"),
    **dict.fromkeys(("tensor_model_parallel_size", "tensor_parallel_size", "tensor_parallel", "tp_size"), "parallel.tp"),
    **dict.fromkeys(("pipeline_model_parallel_size", "pipeline_parallel_size", "pipeline_parallel", "pp_size"), "parallel.pp"),
    **dict.fromkeys(("context_parallel_size", "context_parallel", "cp_size", "sequence_parallel_size"), "parallel.cp"),
    **dict.fromkeys(
        ("data_parallel_size", "dp", "dp_size", "num_gpus", "nproc_per_node", "world_size"),
        "no key: data parallel is the number of processes (torchrun --nproc_per_node N) divided by tp * pp * cp",
    ),
    **dict.fromkeys(("output_dir", "output", "save_dir", "out_dir", "checkpoint_dir", "run_dir"), "checkpoint.directory"),
    **dict.fromkeys(("save_steps", "save_interval", "checkpoint_interval", "save_freq"), "checkpoint.save_every"),
    **dict.fromkeys(("save_total_limit", "keep_last", "max_checkpoints", "max_to_keep"), "checkpoint.keep"),
    **dict.fromkeys(
        ("resume_from_checkpoint", "resume_from", "auto_resume"),
        "checkpoint.resume; the same command continues from the newest checkpoint in checkpoint.directory",
    ),
    **dict.fromkeys(("model_name_or_path", "model_path", "pretrained", "pretrained_model", "load", "load_from", "init"), _WEIGHTS),
    **dict.fromkeys(("vision_tower", "mm_vision_tower"), "model.vision.preset, and `vita convert --vision FOLDER` for its weights"),
    **dict.fromkeys(("lora_r", "lora_rank", "r", "lora_dim"), "lora.rank"),
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "use_rslora": "lora.rslora",
    **dict.fromkeys(("target_modules", "lora_target", "lora_target_modules"), "lora.targets"),
    **dict.fromkeys(
        ("use_dora", "dora", "qlora", "load_in_4bit", "load_in_8bit", "quantization", "quantization_bit"),
        "no key: peft's own code trains DoRA and QLoRA on an export; the guide on LoRA says how",
    ),
    **dict.fromkeys(("logging_steps", "log_interval", "log_every"), "logging.every"),
    **dict.fromkeys(("report_to", "tensorboard_dir", "logging_dir"), "logging.tensorboard (true or false)"),
}  # fmt: skip
"""Lower-case name of another trainer -> our key, with a remark where the meaning differs, or how to say it where there is no key."""


def hint(key: str, prefix: str, known: typing.Collection[str], root: type) -> str:
    """What the writer of an unknown key may have meant.

    Args:
        key: the unknown key.
        prefix: its section with a dot at the end; empty at the top level.
        known: keys of that section.
        root: the recipe's dataclass, whose other sections are searched too.

    Returns:
        The end of a sentence that begins with the unknown key.
    """
    name = key.lower().replace("-", "_")
    keys = list(_keys(root, ""))
    ranked = [full for full in keys if full.rpartition(".")[2] == name]
    close = difflib.get_close_matches(name, known, n=1)
    if name in ALIASES and not ranked:
        meant = ALIASES[name]
        return f"; there is {meant}" if meant.startswith("no key") else f"; here it is {meant}"
    if ranked:
        return f"; did you mean {' or '.join(ranked)}?"
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    names = sorted({full.rpartition(".")[2] for full in keys})
    elsewhere = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    if elsewhere:
        return f"; did you mean {' or '.join(full for full in keys if full.rpartition('.')[2] == elsewhere[0])}?"
    return f"; known keys: {', '.join(sorted(known))}"


def _keys(cls: type, prefix: str) -> Iterator[str]:
    """Every key of a recipe in dotted form, sections left out."""
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):  # type: ignore[arg-type]
        if dataclasses.is_dataclass(hints[item.name]):
            yield from _keys(hints[item.name], f"{prefix}{item.name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{item.name}"
