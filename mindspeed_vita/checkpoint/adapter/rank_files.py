"""Reads the adapters that a run inside MindSpeed-LLM saved: files of all ranks become whole matrices under native names."""

from __future__ import annotations

from pathlib import Path

import torch

from mindspeed_vita.checkpoint.adapter.layers import MATRICES
from mindspeed_vita.checkpoint.megatron.rank_files import chunks_in_order, num_layers, rank_files, renumbered
from mindspeed_vita.files.tensors import Tensors, held, same

_COLUMN, _ROW = ("linear_qkv", "linear_fc1"), ("linear_proj", "linear_fc2")


def read_rank_adapters(folder: Path) -> tuple[Tensors, tuple[Path, ...]]:
    """The matrices, and the files they are in. Adapters are small: all are read.

    Raises:
        ValueError: there are none, a rank's file is missing, or ranks that should agree do not.
    """
    whole, first_layer = {}, 0
    for parts in chunks_in_order(folder):
        for name in parts[0]:
            whole[renumbered(name, first_layer)] = _joined(name, [part[name] for part in parts])
        first_layer += num_layers(parts[0])
    return held(whole), tuple(rank_files(folder).values())


def _joined(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """A whole matrix: B of a layer whose outputs are shared out, and A of one whose inputs are, are cut; the others are on every rank."""
    layer, matrix = name.split(".")[-4], name.rpartition(".")[2]
    assert matrix in MATRICES, name
    if len(parts) == 1:
        return parts[0]
    if name.startswith("language.") and (layer, matrix) in {(column, "lora_B") for column in _COLUMN}:
        return torch.cat(parts)
    if name.startswith("language.") and (layer, matrix) in {(row, "lora_A") for row in _ROW}:
        return torch.cat(parts, dim=1)
    if not all(same(part, parts[0]) for part in parts[1:]):
        raise ValueError(f"{name} should be the same on every tensor-parallel rank, and is not; the files are not of one checkpoint")
    return parts[0]
