"""Where each parameter lies in the flat buffers of megatron.core's distributed optimizer, as --ckpt-format torch stores them.

A rank's distrib_optim.pt holds three long tensors: fp32 parameters and Adam's two moments. The order is that of the gradient buffer:
trainable parameters backwards, each at a multiple of 64 elements, cut into buckets. The padding behind a bucket is not stored.
Source: _ParamAndGradBuffer and DistributedOptimizer.get_parameter_state_dp_zero of megatron.core 0.12.1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Optional

TABLE, SHARED = "language.embedding.word_embeddings.weight", "language.output_layer.weight"
"""The embedding table, and the last stage's copy of it where the embeddings are tied."""
_ALIGNED = 64
"""Elements; every parameter of a bucket begins at a multiple of it."""
_BUCKET_ALIGNED = 128
_SMALLEST_DEFAULT_BUCKET = 40_000_000
_BUCKET_PER_RANK = 1_000_000

_VISION_LAYER = (
    "ls1",
    "ls2",
    "input_layernorm",
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "self_attention.q_norm",
    "self_attention.k_norm",
    "pre_mlp_layernorm",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
_DECODER_LAYER = (
    "input_layernorm",
    "self_attention.linear_proj",
    "self_attention.linear_qkv",
    "self_attention.q_layernorm",
    "self_attention.k_layernorm",
    "pre_mlp_layernorm",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)
_ORDER: dict[str, tuple[str, ...]] = {
    "vision": ("class_token", "conv1", "position_embeddings", "first_layernorm", "layers", "final_layernorm"),
    "projector": ("newline", "norm", "linear_fc1", "linear_fc2"),
    "language": ("embedding.word_embeddings", "decoder.layers", "decoder.final_layernorm", "output_layer"),
}
_IN_LAYER = {"layers": _VISION_LAYER, "decoder.layers": _DECODER_LAYER}
_NUMBERED = re.compile(r"(layers|decoder\.layers)\.(\d+)\.(.*)")
_KINDS = ("", ".weight", ".bias")


def parameter_order(names: Iterable[str]) -> list[str]:
    """Native names in the order in which the model's modules hold them, which is that of torch's named_parameters().

    Raises:
        ValueError: a name of a module that is not listed here, such as a plugin's tower.
    """
    return sorted(names, key=_place)


def _place(name: str) -> tuple[int, ...]:
    module, _, rest = name.partition(".")
    if module in _ORDER:
        numbered = _NUMBERED.fullmatch(rest)
        scope, layer, inner = (numbered[1], int(numbered[2]), numbered[3]) if numbered else (rest, 0, "")
        for kind, ending in enumerate(_KINDS):
            outer = scope if numbered else scope.removesuffix(ending) if scope.endswith(ending) else None
            part = inner.removesuffix(ending) if inner.endswith(ending) else None
            if outer not in _ORDER[module] or (numbered and part not in _IN_LAYER[scope]):
                continue
            place = _IN_LAYER[scope].index(str(part)) if numbered else 0
            return (list(_ORDER).index(module), _ORDER[module].index(str(outer)), layer, place, kind)
    raise ValueError(
        f"the place of {name} in MindSpeed-LLM's optimizer is not known, because it belongs to a module of a plugin; leave --optimizer out"
    )


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """What the cut into buckets depends on."""

    size: Optional[int] = None
    """Elements at which a bucket ends; None makes one bucket."""
    ranks: int = 1
    """Data-parallel ranks, context parallelism included."""

    @staticmethod
    def of(arguments: Any, *, stage: int, num_parameters: int) -> Buckets:
        """Those of a run of Megatron.

        Args:
            arguments: its namespace, as the checkpoint holds it.
            stage: pipeline stage; only the first one has more than one bucket.
            num_parameters: elements of all parameters of the rank.
        """
        ranks = (getattr(arguments, "data_parallel_size", None) or 1) * (getattr(arguments, "context_parallel_size", None) or 1)
        whole = stage > 0 or getattr(arguments, "overlap_param_gather_with_optimizer_step", False)
        if whole or not getattr(arguments, "overlap_grad_reduce", False):
            return Buckets(ranks=ranks)
        number, size = getattr(arguments, "ddp_num_buckets", None), getattr(arguments, "ddp_bucket_size", None)
        if number:
            size = num_parameters // number
        return Buckets(size=size or max(_SMALLEST_DEFAULT_BUCKET, _BUCKET_PER_RANK * ranks), ranks=ranks)


def alone_in_bucket(names: Iterable[str], *, tied: bool, pp: int) -> str:
    """The table that the first and the last pipeline stage share, which has a bucket of its own; empty where a rank holds none.

    Args:
        names: native names of a rank's trainable parameters.
        tied: the output layer shares the embedding table.
        pp: pipeline stages.
    """
    held = [name for name in names if name in (SHARED, TABLE)] if tied and pp > 1 else []
    return held[0] if held else ""


def flat_places(sizes: Mapping[str, int], buckets: Buckets, alone: str = "") -> dict[str, int]:
    """Where each parameter begins in the stored tensors, in the order in which they lie there.

    Args:
        sizes: elements of each trainable parameter of a rank, in parameter_order.
        buckets: how the buffer is cut.
        alone: as alone_in_bucket.

    Raises:
        ValueError: a shared table that does not begin at a bucket's border; megatron.core itself cannot train that.
    """
    places: dict[str, int] = {}
    stored = 0  # elements of the file before this bucket
    begin = end = 0  # of this bucket in the buffer, so far
    held = 0  # parameters in it

    def close() -> None:
        nonlocal stored, begin, end, held
        stored += end - begin
        begin = end = _up(end, math.lcm(buckets.ranks, _BUCKET_ALIGNED))
        held = 0

    for name in reversed(list(sizes)):
        end = _up(end, _ALIGNED)
        if name == alone and held:
            if end % math.lcm(buckets.ranks, _BUCKET_ALIGNED):
                raise ValueError(f"{name}, which two pipeline stages share, does not begin at a bucket's border; leave --optimizer out")
            close()
        places[name] = stored + end - begin
        end += sizes[name]
        held += 1
        if name == alone or (buckets.size is not None and end - begin >= buckets.size):
            close()
    return places


def stored_size(sizes: Mapping[str, int], places: Mapping[str, int]) -> int:
    """Elements of the stored tensors."""
    return max((places[name] + sizes[name] for name in places), default=0)


def _up(number: int, divisor: int) -> int:
    return -(-number // divisor) * divisor
