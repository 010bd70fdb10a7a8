"""What a command line must not say: the flags that the table of verdicts refuses, and flags that do not fit each other or the files."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.addresses import is_address
from mindspeed_vita.config import LanguageConfig, Recipe
from mindspeed_vita.config.recompute import WHOLE_LAYERS
from mindspeed_vita.integration.mindspeed_llm.arguments import recipe_from_arguments, register, virtual_stages
from mindspeed_vita.integration.mindspeed_llm.decoder_flags import check_decoder
from mindspeed_vita.integration.mindspeed_llm.flags import RECOMPUTE, TRACKER, attribute
from mindspeed_vita.integration.mindspeed_llm.handover import holds_checkpoint
from mindspeed_vita.integration.mindspeed_llm.high_availability import (
    apply_environment,
    check_high_availability,
    is_watched_by_mindio,
)
from mindspeed_vita.integration.mindspeed_llm.parser_table import PINNED, build_parser
from mindspeed_vita.integration.mindspeed_llm.saved import DISTRIBUTED, check_saved
from mindspeed_vita.integration.mindspeed_llm.verdicts import judge, told


def check_arguments(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, given: Collection[str], language: Optional[LanguageConfig] = None
) -> list[str]:
    """Refuses what this package cannot train under, each with what to change.

    Args:
        parser: which parsed them.
        arguments: parsed, before Megatron's own checks.
        given: flags that the command line gives.
        language: the decoder that they describe; None takes the released one's family.

    Returns:
        A line for every flag that has no effect here.

    Raises:
        ValueError: one message with every problem.
    """
    apply_environment(arguments, os.environ)
    refused, unused = judge(parser, arguments, given)
    decoder = check_decoder(arguments, language or LanguageConfig())
    combined = [*_combinations(arguments, given), *_evaluation(arguments, given)]
    problems = [*refused, *_missing(arguments), *decoder, *combined, *_loading(arguments)]
    if problems:
        raise ValueError("command line: " + "; ".join(problems))
    return unused


def check_line(line: Sequence[str], language: Optional[LanguageConfig] = None) -> list[str]:
    """As `check_arguments`, where MindSpeed-LLM is not installed: the table of the supported version stands for its parser.

    Args:
        line: the words of a command line.
        language: the decoder that they describe; None takes the released one's family.

    Raises:
        ValueError: a flag is unknown or its value cannot be read, or as `check_arguments`.
    """
    parser = build_parser()
    register(parser)
    arguments, unknown = parser.parse_known_args(list(line))
    if unknown:
        raise ValueError(f"command line: {' '.join(unknown)}: MindSpeed-LLM {PINNED} has no such flag; leave it out")
    return check_arguments(parser, arguments, told(line), language)


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


def check_pipeline(recipe: Recipe) -> None:
    """Refuses pipelines that the built-in engine has and MindSpeed-LLM was not compared with.

    Raises:
        ValueError: the recipe deals layers unevenly, or its stages share a table.
    """
    parallel, problems = recipe.parallel, []
    if parallel.layer_split != "even" or parallel.stage_layers:
        problems.append(
            "parallel.layer_split and parallel.stage_layers are for the built-in engine; inside MindSpeed-LLM leave them out and use "
            "--decoder-first-pipeline-num-layers"
        )
    if recipe.train.even_steps > 1:
        problems.append(f"train.even_steps={recipe.train.even_steps} is for the built-in engine; MindSpeed-LLM deals packs in turn, use 0")
    if parallel.pp > 1 and recipe.model.language.tie_embeddings:
        problems.append(
            f"parallel.pp={parallel.pp} with model.language.tie_embeddings was not compared inside MindSpeed-LLM; use pp=1 and more tp, "
            "or the built-in engine"
        )
    if problems:
        raise ValueError("; ".join(problems))


def check_stores(recipe: Recipe) -> None:
    """Refuses addresses of object stores where checkpoints are concerned: Megatron reads and writes folders.

    Raises:
        ValueError: checkpoint.init_from is an address, but for a run of adapters, or checkpoint.store is set.
    """
    start, problems = recipe.checkpoint.init_from, []
    if is_address(start) and not recipe.lora.rank:  # what adapters start from is looked up and loaded by this package
        problems.append(
            f"checkpoint.init_from={start} is an address; only the built-in engine fetches it: copy it to a folder that all hosts see, "
            "and name that"
        )
    if recipe.checkpoint.store:
        problems.append(
            f"checkpoint.store={recipe.checkpoint.store}: MindSpeed-LLM's checkpoints are not sent to a store; leave it out, and copy "
            "checkpoint.directory with the store's own tool"
        )
    if problems:
        raise ValueError("; ".join(problems))


def uneven_pipeline(arguments: argparse.Namespace) -> bool:
    """Whether the first or the last stage of the pipeline is given a number of layers of its own."""
    return bool(_get(arguments, "decoder_first_pipeline_num_layers") or _get(arguments, "decoder_last_pipeline_num_layers"))


def _get(arguments: argparse.Namespace, name: str) -> Any:
    return getattr(arguments, name, None)


def _missing(arguments: argparse.Namespace) -> list[str]:
    needed = {
        "vita_data_mixture": "--vita-data-mixture is missing; name the mixture YAML",
        "global_batch_size": "--global-batch-size is missing; name the packs of one step",
        "padded_vocab_size": "--padded-vocab-size is missing; name the rows of the embedding table (152064 for Qwen2.5 of 7b and more)",
    }
    return [line for name, line in needed.items() if not _get(arguments, name)]


def _combinations(arguments: argparse.Namespace, given: Collection[str]) -> list[str]:
    """Flags that do not go together, and layers that do not go into the stages."""
    problems = []
    if (_get(arguments, "tensor_model_parallel_size") or 1) > 1 and not _get(arguments, "sequence_parallel"):
        problems.append("--sequence-parallel is missing; tensor parallelism is trained with it only")
    if _get(arguments, "use_distributed_optimizer") and not _get(arguments, "bf16"):
        problems.append("--use-distributed-optimizer in fp32: Megatron could not load what it saves; leave it out, or use --bf16")
    if {"--lr-warmup-fraction", "--lr-warmup-iters"} <= set(given):
        problems.append("--lr-warmup-iters next to --lr-warmup-fraction: Megatron takes one of them; leave one out")
    if _get(arguments, "npu_datadump") and _get(arguments, "vita_debug_msprobe"):
        problems.append("--npu-datadump next to --vita-debug-msprobe: msprobe can be set up once per process; leave one of them out")
    if _get(arguments, "save") and not _get(arguments, "save_interval"):
        problems.append("--save without --save-interval: name the steps between two checkpoints")
    if _get(arguments, "ckpt_format") != DISTRIBUTED and _get(arguments, "async_save"):
        problems.append(f"--async-save without --ckpt-format {DISTRIBUTED}: only that format is written while steps run; add it")
    if _get(arguments, "ckpt_format") == DISTRIBUTED and recipe_from_arguments(arguments).lora.rank:
        problems.append(f"--ckpt-format {DISTRIBUTED} with --vita-lora-rank: adapters are saved alone, in the format torch; use that")
    if is_watched_by_mindio(arguments):
        problems += check_high_availability(arguments, adapters=bool(recipe_from_arguments(arguments).lora.rank))
    ours = _get(arguments, attribute(RECOMPUTE))
    if _get(arguments, "recompute_norm") and ours in WHOLE_LAYERS:
        problems.append(
            f"--recompute-norm with {RECOMPUTE} {ours}: MindSpeed puts a forward pass of its own in place of the layers', which would "
            f"then not recompute themselves; leave it out ({ours} recomputes norms too), or use {RECOMPUTE} mlp or selective"
        )
    if _get(arguments, "swap_attention") and "vision" in recipe_from_arguments(arguments).train.modules:
        problems.append(
            "--swap-attention while the tower trains: MindSpeed tells layers apart by the first number in a module's name, so it takes the "
            "tower's layers for the decoder's and fails in the backward pass; leave it out and use --vita-train-recompute full with "
            "--vita-train-offload inputs, or leave vision out of --vita-train-modules"
        )
    return problems + _stages(arguments)


def _evaluation(arguments: argparse.Namespace, given: Collection[str]) -> list[str]:
    """--eval-iters follows from the held-out packs, so one that says something else is a mistake."""
    found = _get(arguments, "eval_iters")
    if "--eval-iters" not in given or found is None:
        return []
    if not _get(arguments, "vita_eval_mixture"):
        return [f"--eval-iters {found} without --vita-eval-mixture: there is no held-out data; name its mixture, or use 0"] if found else []
    packs, batch = int(_get(arguments, "vita_eval_packs") or 0), _get(arguments, "global_batch_size") or 1
    expected = -(-packs // batch)
    if packs and found != expected:
        what = f"{packs} held-out packs (--vita-eval-packs) are {expected} batches of {batch}"
        return [f"--eval-iters {found}: {what}; use that number, or leave the flag out"]
    return []


def _stages(arguments: argparse.Namespace) -> list[str]:
    layers, pp = _get(arguments, "num_layers"), _get(arguments, "pipeline_model_parallel_size") or 1
    if not layers or pp == 1:
        return []
    try:
        virtual_stages(arguments)
    except ValueError as error:
        return [str(error)]
    ends = [_get(arguments, f"decoder_{end}_pipeline_num_layers") for end in ("first", "last")]
    counted = [number for number in ends if number is not None]
    rest, stages = layers - sum(counted), pp - len(counted)
    if rest >= stages and (rest % stages == 0 if stages else rest == 0):
        return []
    found = f"--num-layers {layers} over --pipeline-model-parallel-size {pp}"
    found += f", {sum(counted)} of them on stages that have a number of their own" if counted else ""
    return [
        f"{found}: the other stages must share the rest equally; give the first stage its own number with "
        "--decoder-first-pipeline-num-layers, or the last with --decoder-last-pipeline-num-layers"
    ]


def _loading(arguments: argparse.Namespace) -> list[str]:
    """Megatron trains from random weights, with a warning only, where --finetune finds nothing to load."""
    folder, other = _get(arguments, "load"), _get(arguments, "pretrained_checkpoint")
    if other and not holds_checkpoint(folder or "") and not holds_checkpoint(other):
        return [f"--pretrained-checkpoint {other}: no checkpoint there, as it holds no {TRACKER}; name the folder that a run saved to"]
    if _get(arguments, "finetune") and not other:
        if not folder:
            return ["--finetune without --load: name the folder of the checkpoint to start from with --load DIR, or leave --finetune out"]
        if not holds_checkpoint(folder):
            return [f"--load {folder} --finetune: no checkpoint there, as it holds no {TRACKER}; name the folder that a run saved to"]
    # Megatron loads --load where it holds a checkpoint, and the other one, without its optimizer, where it does not
    found = folder if holds_checkpoint(folder or "") else other
    if not found:
        return []
    whole = found == folder and not _get(arguments, "finetune")
    return check_saved(
        Path(found),
        step=_get(arguments, "ckpt_step"),
        distributed=_get(arguments, "ckpt_format") == DISTRIBUTED or bool(_get(arguments, "auto_detect_ckpt_format")),
        tp=_get(arguments, "tensor_model_parallel_size") or 1,
        pp=_get(arguments, "pipeline_model_parallel_size") or 1,
        virtual_stages=virtual_stages(arguments),
        optimizer=whole and not _get(arguments, "no_load_optim"),
        random_state=whole and not _get(arguments, "no_load_rng"),
    )
