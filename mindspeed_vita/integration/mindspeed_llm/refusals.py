"""What a command line must not say: flags that would take attention, context parallelism, the data or the loss away from this package."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mindspeed_vita.config import Recipe
from mindspeed_vita.integration.mindspeed_llm.flags import TRACKER, attribute


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuses what this package cannot train under, each with what to change.

    Args:
        arguments: parsed, before Megatron's own checks.

    Raises:
        ValueError: one message with every problem.
    """
    problems = [*_attention(arguments), *_data(arguments), *_model(arguments), *_training(arguments), *_loading(arguments)]
    if problems:
        raise ValueError("command line: " + "; ".join(problems))


def check_line(line: Sequence[str]) -> None:
    """As `check_arguments`, for a command line that nobody has parsed: without Megatron there is no parser that knows its flags.

    Args:
        line: words; those that follow a flag are its values.

    Raises:
        ValueError: one message with every problem.
    """
    words: dict[str, list[str]] = {}
    values: list[str] = []
    for word in line:
        if word.startswith("--"):
            flag, sign, value = word.partition("=")
            values = words[attribute(flag)] = [value] if sign else []
        else:
            values.append(word)
    check_arguments(argparse.Namespace(**{name: _value(given) for name, given in words.items()}))


def _value(words: Sequence[str]) -> Any:
    """What argparse would make of a flag's words."""
    if len(words) != 1:
        return list(words) or True
    try:
        number = yaml.safe_load(words[0])
    except yaml.YAMLError:
        return words[0]
    return number if isinstance(number, (int, float)) else words[0]


def check_tower(recipe: Recipe) -> None:
    """Refuses a tower that MindSpeed-LLM's checkpoints could not give back whole: they know nothing of heads.

    Raises:
        ValueError: the tower's weights are cut, and its heads do not divide or its norms span them.
    """
    vision, tp = recipe.model.vision, recipe.parallel.tp
    if recipe.parallel.vision_parallel == "tensor" and (vision.num_heads % tp or (tp > 1 and vision.qk_norm)):
        raise ValueError(
            f"parallel.vision_parallel=tensor cuts {vision.num_heads} heads (qk_norm={str(vision.qk_norm).lower()}) over tp={tp}, which "
            "MindSpeed-LLM's checkpoints cannot hold; use balanced, or the built-in engine, whose checkpoints leave zero heads out"
        )


def _get(arguments: argparse.Namespace, name: str) -> Any:
    return getattr(arguments, name, None)


def _refuse(arguments: argparse.Namespace, flags: Mapping[str, str]) -> list[str]:
    """A line for every flag that is set."""
    return [f"{flag}: {advice}" for flag, advice in flags.items() if _get(arguments, attribute(flag))]


def _attention(arguments: argparse.Namespace) -> list[str]:
    problems = _refuse(
        arguments,
        {
            "--reset-attention-mask": "it replaces the collate function and the attention; packs are isolated with --vita-data-resets true",
            "--reset-position-ids": "positions come from the pack; use --vita-data-resets true",
            "--neat-pack": "packs are planned by this package; leave it out",
            "--multi-latent-attention": "the decoder is Qwen2.5; leave it out",
            "--multi-head-latent-attention": "the decoder is Qwen2.5; leave it out",
            "--sliding-window": "attention sees the whole document; leave it out",
            "--alibi-pos-emb": "positions are rotary; leave it out",
            "--rope-scaling-type": "rotary positions are this package's; use --vita-model-language-rope-scaling-kind",
            "--qk-layernorm": "the decoder is Qwen2.5; leave it out",
            "--share-kvstates": "the decoder is Qwen2.5; leave it out",
            "--tp-2d": "sequence parallelism and the tile exchange need one tensor-parallel axis; leave it out",
        },
    )
    algorithm = _get(arguments, "context_parallel_algo") or "megatron_cp_algo"
    if algorithm != "megatron_cp_algo":
        problems.append(
            f"--context-parallel-algo {algorithm}: it wraps the attention of every layer, but context parallelism is this package's "
            f"own; leave it out (megatron_cp_algo), keep --context-parallel-size, and share heads out with --vita-parallel-ulysses"
        )
    return problems


def _data(arguments: argparse.Namespace) -> list[str]:
    problems = _refuse(
        arguments,
        {
            "--data-path": "data comes from --vita-data-mixture; leave it out",
            "--mock-data": "data comes from --vita-data-mixture; leave it out",
            "--is-instruction-dataset": "chats come from --vita-data-mixture; leave it out",
            "--is-pairwise-dataset": "data comes from --vita-data-mixture; leave it out",
            "--rampup-batch-size": "the number of packs a step is fixed; leave it out",
        },
    )
    if not _get(arguments, "vita_data_mixture"):
        problems.append("--vita-data-mixture is missing; name the mixture YAML")
    if _get(arguments, "micro_batch_size") != 1:
        found = _get(arguments, "micro_batch_size")
        problems.append(f"--micro-batch-size {found}: one pack is one micro-batch; use 1 and a longer --seq-length")
    if _get(arguments, "dataloader_type") not in (None, "single"):
        problems.append(f"--dataloader-type {_get(arguments, 'dataloader_type')}: packs are dealt by number; use single")
    if not _get(arguments, "global_batch_size"):
        problems.append("--global-batch-size is missing; name the packs of one step")
    return problems


def _model(arguments: argparse.Namespace) -> list[str]:
    problems = _refuse(
        arguments,
        {
            "--use-legacy-models": "use --use-mcore-models",
            "--num-experts": "the decoder is dense; leave it out",
            "--mtp-num-layers": "the decoder predicts one token; leave it out",
            "--fp16": "use --bf16, or neither for fp32",
            "--noop-layers": "leave it out and use a --pipeline-model-parallel-size that divides --num-layers",
            "--num-layer-list": "leave it out and use a --pipeline-model-parallel-size that divides --num-layers",
            "--num-layers-per-virtual-pipeline-stage": "the tower lives on the first stage of an uninterleaved pipeline; leave it out",
            "--lora-target-modules": "choose what trains with --vita-train-modules",
            "--add-output-layer-bias": "the output layer of Qwen2.5 has none; leave it out",
            "--scale-depth": "the decoder is Qwen2.5; leave it out",
            "--input-embeds-norm": "the decoder is Qwen2.5; leave it out",
        },
    )
    if _get(arguments, "schedules_method") is not None:
        problems.append(f"--schedules-method {arguments.schedules_method}: use the plain schedule; leave it out")
    wanted = (("swiglu", "--swiglu"), ("add_qkv_bias", "--add-qkv-bias"), ("group_query_attention", "--group-query-attention"))
    problems += [f"{flag} is missing; the decoder is Qwen2.5" for name, flag in wanted if not _get(arguments, name)]
    if _get(arguments, "add_bias_linear"):
        problems.append("--disable-bias-linear is missing; the decoder is Qwen2.5")
    if _get(arguments, "normalization") != "RMSNorm":
        problems.append(f"--normalization {_get(arguments, 'normalization')}: the decoder is Qwen2.5; use RMSNorm")
    for name in ("attention_dropout", "hidden_dropout"):
        if _get(arguments, name):
            problems.append(f"--{name.replace('_', '-')} {getattr(arguments, name)}: Long-VITA trains without; use 0.0")
    if not _get(arguments, "padded_vocab_size"):
        problems.append("--padded-vocab-size is missing; name the rows of the embedding table (152064 for Qwen2.5 of 7b and more)")
    return problems


def _training(arguments: argparse.Namespace) -> list[str]:
    problems = _refuse(
        arguments,
        {
            "--use-torch-fsdp2": "use --use-distributed-optimizer",
            "--use-custom-fsdp": "use --use-distributed-optimizer",
            "--layerzero": "use --use-distributed-optimizer",
            "--train-samples": "use --train-iters",
            "--decoupled-lr": "use --vita-train-language-lr-mult and its like",
            "--lr-decay-samples": "use --lr-decay-iters",
        },
    )
    optimizer = _get(arguments, "optimizer") or "adam"
    if optimizer != "adam" or "muon" in str(_get(arguments, "optimizer_selection")):
        problems.append("--optimizer: learning-rate multipliers need Adam's parameter groups; use adam")
    if (_get(arguments, "tensor_model_parallel_size") or 1) > 1 and not _get(arguments, "sequence_parallel"):
        problems.append("--sequence-parallel is missing; tensor parallelism is trained with it only")
    return problems


def _loading(arguments: argparse.Namespace) -> list[str]:
    """Megatron trains from random weights, with a warning only, where --finetune finds nothing to load."""
    folder, other = _get(arguments, "load"), _get(arguments, "pretrained_checkpoint")
    if not _get(arguments, "finetune") or other:
        return []
    if not folder:
        return ["--finetune without --load: name the folder of the checkpoint to start from with --load DIR, or leave --finetune out"]
    if not (Path(folder) / TRACKER).is_file():
        return [f"--load {folder} --finetune: no checkpoint there, as it holds no {TRACKER}; name the folder that a run saved to"]
    return []
