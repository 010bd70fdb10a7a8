"""Recipe keys and command-line flags: which key Megatron has a flag for, and the --vita-... flag of every other key. Tables only."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, Iterator

from mindspeed_vita.config import Recipe

MEGATRON = {
    "model.language.num_layers": "--num-layers",
    "model.language.hidden_size": "--hidden-size",
    "model.language.num_heads": "--num-attention-heads",
    "model.language.num_kv_heads": "--num-query-groups",
    "model.language.ffn_hidden_size": "--ffn-hidden-size",
    "model.language.vocab_size": "--padded-vocab-size",
    "model.language.max_positions": "--max-position-embeddings",
    "model.language.rope_base": "--rotary-base",
    "model.language.norm_eps": "--norm-epsilon",
    "model.init_std": "--init-method-std",
    "data.tokenizer": "--tokenizer-name-or-path",
    "data.seq_length": "--seq-length",
    "parallel.tp": "--tensor-model-parallel-size",
    "parallel.pp": "--pipeline-model-parallel-size",
    "parallel.cp": "--context-parallel-size",
    "train.steps": "--train-iters",
    "train.global_batch": "--global-batch-size",
    "train.lr": "--lr",
    "train.min_lr": "--min-lr",
    "train.warmup_fraction": "--lr-warmup-fraction",
    "train.weight_decay": "--weight-decay",
    "train.beta1": "--adam-beta1",
    "train.beta2": "--adam-beta2",
    "train.eps": "--adam-eps",
    "train.clip_grad": "--clip-grad",
    "train.seed": "--seed",
    "checkpoint.directory": "--save",
    "checkpoint.save_every": "--save-interval",
    "logging.every": "--log-interval",
    "eval.every": "--eval-interval",
}
"""Keys whose value is the flag's value."""

BY_HAND = (
    "model.language.tie_embeddings",
    "parallel.virtual_stages",
    "train.precision",
    "train.recompute",
    "checkpoint.resume",
    "logging.tensorboard",
)
"""Keys that arguments.py turns into switches."""

RECOMPUTE = "--vita-train-recompute"
"""Recomputation by this package's layers. Megatron's own flags say train.recompute=full, and are enough for that."""

VIRTUAL = "--num-layers-per-virtual-pipeline-stage"
"""Says parallel.virtual_stages by the layers of a chunk. MindSpeed's features look at this flag, not at Megatron's newer one."""

FIXED = (
    "--use-mcore-models",
    "--transformer-impl",
    "local",
    "--position-embedding-type",
    "rope",
    "--normalization",
    "RMSNorm",
    "--swiglu",
    "--disable-bias-linear",
    "--group-query-attention",
    "--attention-dropout",
    "0.0",
    "--hidden-dropout",
    "0.0",
    "--no-masked-softmax-fusion",
    "--no-gradient-accumulation-fusion",
    "--micro-batch-size",
    "1",
    "--calculate-per-token-loss",
    "--lr-decay-style",
    "cosine",
    "--tokenizer-type",
    "PretrainedFromHF",
    "--make-vocab-size-divisible-by",
    "1",
    "--dataloader-type",
    "single",
    "--num-workers",
    "0",
    "--ckpt-format",
    "torch",
    "--no-create-attention-mask-in-dataloader",
    # Megatron's own 10 minutes end a run in which the others wait for one rank's first big save
    "--distributed-timeout-minutes",
    "120",
)
"""What every run says to Megatron, whatever its recipe: what all decoders have, one pack per micro-batch, and packs dealt by number.
decoder_flags.py adds what the decoder's family has."""

TRACKER = "latest_checkpointed_iteration.txt"
"""The file by which Megatron knows that a folder holds a checkpoint, and which one."""

NO_EFFECT = {
    "parallel.overlap_grad_reduce": "Megatron has a flag of its own for it, --overlap-grad-reduce",
    "parallel.overlap_param_gather": "Megatron has a flag of its own for it, --overlap-param-gather",
    "train.grad_reduce": "Megatron reduces gradients in fp32",
    "checkpoint.keep": "MindSpeed-LLM keeps every checkpoint",
    "checkpoint.save_minutes": "MindSpeed-LLM saves by steps; Megatron has --exit-duration-in-mins",
    "checkpoint.keep_unsent": "MindSpeed-LLM's checkpoints are not sent to a store",
    "checkpoint.background": "MindSpeed-LLM writes checkpoints before the next step",
    "profile.steps": "MindSpeed-LLM has flags of its own for it, --profile, --profile-step-start and --profile-step-end",
    "profile.ranks": "MindSpeed-LLM has a flag of its own for it, --profile-ranks",
    "logging.progress": "MindSpeed-LLM prints lines",
    "health.on_bad_numbers": "Megatron ends a run with a loss that is not finite (--no-check-for-nan-in-loss-and-grad)",
    "health.spike_factor": "MindSpeed-LLM does not look for spikes",
    "health.spike_window": "MindSpeed-LLM does not look for spikes",
    "health.most_bad_steps": "MindSpeed-LLM passes over no step",
    "eval.at_start": "Megatron measures from the first interval on; `vita eval loss` measures the weights it starts from",
    "eval.patience": "Megatron trains to --train-iters",
    "eval.keep_best": "MindSpeed-LLM keeps every checkpoint",
}
"""Keys that only the built-in engine knows, and why. They are carried along, so that the recipe comes back whole."""


def leaves(cls: type = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of the recipe with its type, dotted, in order."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{field.name}", hint


def attribute(flag: str) -> str:
    """The name argparse keeps a flag's value under."""
    return flag.removeprefix("--").replace("-", "_")


VITA = {
    key: "--vita-" + key.replace(".", "-").replace("_", "-") for key, _ in leaves() if key not in MEGATRON and key not in BY_HAND
}
"""Keys that Megatron has no flag for."""

TEXT = frozenset(key for key, hint in leaves() if hint is str or typing.get_origin(hint) is typing.Literal)
"""Keys whose value is taken as it is written; the others are YAML."""
