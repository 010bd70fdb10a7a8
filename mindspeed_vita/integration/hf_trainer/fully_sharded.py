"""FSDP2: torch's fully_shard over the exported model, and checkpoints that any number of processes reads.

accelerate applies FSDP2 to accelerators only and drops it on a CPU without a word. So it is applied here, the same on every device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

PARTS = "fsdp2"
"""Folder of a checkpoint with the parts of all ranks."""


def share(model: Any, *, device: torch.device, half: bool) -> None:
    """Shares weights, gradients and optimizer over all ranks. Each layer's weights are gathered while it is used.

    Args:
        model: the exported model with fp32 weights; the optimizer is made afterwards.
        device: this rank's.
        half: compute in bf16. Weights, reductions and the optimizer stay fp32.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # inputs are not cast: a pack's weights of tokens are fp32, and what layers get has the dtype of the embeddings
    dtypes = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if half else {}
    policy = MixedPrecisionPolicy(**dtypes, cast_forward_inputs=False)
    inner = model.model
    parts = [*inner.vision_model.encoder.layers, *inner.layers]
    if inner.embed_tokens.weight is not model.lm_head.weight:  # tied tables stay with what is gathered for the whole pass
        parts += [inner.embed_tokens, model.lm_head]
    for part in (*parts, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    model._is_accelerate_prepared = True  # accelerate then does not wrap it once more, in DistributedDataParallel


def save(model: Any, optimizer: Any, folder: Path) -> None:
    """Writes this rank's part of weights and optimizer. Collective."""
    weights, states = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder / PARTS)


def load(model: Any, optimizer: Any, folder: Path) -> None:
    """Reads what `save` wrote, also where other processes wrote it. Collective."""
    weights, states = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": states}, checkpoint_id=folder / PARTS)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=states)


def whole_weights(model: Any) -> dict[str, Any]:
    """Whole tensors by name in host memory, on rank 0; empty on the others. Collective."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
