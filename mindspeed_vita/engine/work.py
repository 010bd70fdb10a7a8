"""Floating-point operations that a step's mathematics needs, and the share of the devices' peak that it reached (MFU).

Counted are matrix products, two operations for each multiply-add, forward and backward. What a kernel or a recompute mode computes again is
not counted, and neither are norms, activations and the optimizer (PaLM, arXiv 2204.02311, appendix B). Attention is counted over the real
documents: the pieces of the pack's plan. A frozen module has no gradient of its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np

from mindspeed_vita.config import ModelConfig, Recipe, projector_traits, tower_traits
from mindspeed_vita.data.batch import IGNORE, PackedBatch

_TERA = 1e12
PEAKS: dict[str, Optional[float]] = {
    "NVIDIA A100": 312.0,  # 312 dense: NVIDIA's data sheet nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf
    "NVIDIA A800": 312.0,  # no page of NVIDIA found; 311.87 dense in hmc-tech.com/gpu/nvidia-a800-vs-nvidia-t40, as the A100
    "NVIDIA H100 PCIe": 756.0,  # 1,513 with sparsity in NVIDIA's table, as archive-lib.hpctech.co.jp/gpuproduct/nvidia-h100.html has it
    "NVIDIA H100 NVL": None,  # not found
    "NVIDIA H100": 989.0,  # SXM: 1,979 with sparsity, in the same table
    "NVIDIA H800 PCIe": None,  # not found
    "NVIDIA H800": 989.0,  # SXM: no figure found; the H100 but for fp64 and NVLink: philisun.com/technical-analysis
    "NVIDIA H200 NVL": None,  # not found
    "NVIDIA H200": 989.0,  # SXM: about 989 dense in itkb.uw.cz/2026/06/nvidia-h200-vs-b300-precisions-cores.html; the chip is the H100's
    "NVIDIA L40S": 362.0,  # 362.05 dense in NVIDIA's table, as mullet.se/product.html?product_id=355414 has it
    "NVIDIA B200": 2250.0,  # HGX at 1,000 W: 4,500 with sparsity, 2,250 dense in glennklockwood.com/garden/processors/B200
}
"""Dense bf16 TFLOP/s of one device by the start of its name; the first that fits counts. None: there is no source for it, and another
device's number would be wrong. The recipe's logging.peak_tflops says it for these and all others. NVIDIA's own pages could be read only
as far as others reprint them; each entry names where."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Operations, summed over forward and backward pass."""

    linear: int = 0
    """Linear layers of the decoder."""
    attention: int = 0
    """Attention of the decoder."""
    head: int = 0
    """Rows of logits."""
    tower: int = 0
    """Tower and projector."""

    @property
    def total(self) -> int:
        """All parts."""
        return self.linear + self.attention + self.head + self.tower

    def __add__(self, other: Work) -> Work:
        parts = ("linear", "attention", "head", "tower")
        return Work(**{part: getattr(self, part) + getattr(other, part) for part in parts})


def pack_work(recipe: Recipe, batch: PackedBatch) -> Work:
    """The work of one pack, over all ranks that share it."""
    tokens = len(batch.tokens_T)
    lengths = np.diff(np.asarray(batch.cp_plan.piece_bounds)).astype(object)  # Python's integers: squares of a pack overflow none
    rows = int((batch.labels_T != IGNORE).sum()) if recipe.model.lm_head == "masked" else tokens
    pairs = int((lengths * (lengths + 1) // 2).sum())
    return count(recipe.model, recipe.train.modules, tokens=tokens, pairs=pairs, rows=rows, tiles=len(batch.tile_first_token))


def count(model: ModelConfig, trained: tuple[str, ...], *, tokens: int, pairs: int, rows: int, tiles: int) -> Work:
    """The work of given amounts.

    Args:
        model: sizes.
        trained: modules that train.
        tokens: tokens of the decoder, padding included.
        pairs: query-key pairs of causal attention.
        rows: rows with logits.
        tiles: tiles in tower and projector. Those of plugins are counted by their traits.
    """
    language = model.language
    hidden, width = language.hidden_size, language.num_heads * language.head_dim
    per_token = hidden * (2 * width + 2 * language.num_kv_heads * language.head_dim + 3 * language.ffn_hidden_size)
    # gradients of the inputs are always wanted: the embedding, the projector or the tower trains below
    passes = 3 if "language" in trained else 2
    return Work(
        linear=2 * passes * language.num_layers * tokens * per_token,
        attention=2 * 2 * 3 * language.num_layers * width * pairs,
        head=2 * passes * rows * hidden * language.vocab_size,
        tower=tiles * _tile(model, trained),
    )


def _tile(model: ModelConfig, trained: tuple[str, ...]) -> int:
    vision, projector, padding = model.vision, model.projector, projector_traits(model.projector.kind).padding
    trains_vision, width = "vision" in trained, vision.hidden_size
    patches = vision.grid**2
    positions = patches + tower_traits(vision.tower).class_token
    layers = vision.num_layers * positions * width * (4 * width + 2 * vision.ffn_hidden_size)
    attention = 2 * vision.num_layers * positions**2 * width
    embedding = patches * 3 * vision.patch_size**2 * width  # nothing wants the gradient of pixels
    side = -(-vision.grid // projector.pixel_shuffle) if padding else vision.grid // projector.pixel_shuffle
    merged = side**2 * projector.hidden_size * (projector.pixel_shuffle**2 * width + model.language.hidden_size)
    # the projector's norm trains before its linear layers, so these have the gradients of their inputs even over a frozen tower
    passes = 3 if "projector" in trained else 2 if trains_vision else 1
    return 2 * ((3 if trains_vision else 1) * (layers + attention) + (2 if trains_vision else 1) * embedding + passes * merged)


def peak_of(device_name: str, said: float) -> Optional[float]:
    """Dense bf16 FLOP/s of one device; None where it is unknown.

    Args:
        device_name: as its driver names it.
        said: TFLOP/s from the recipe; 0: none.
    """
    if said:
        return said * _TERA
    peak = next((peak for name, peak in PEAKS.items() if device_name.startswith(name)), None)
    return None if peak is None else peak * _TERA


def speeds(flops: float, seconds: float, devices: int, peak: Optional[float]) -> dict[str, float]:
    """TFLOP/s of each device, and `mfu`, their share of its peak, where the peak is known."""
    per_device = flops / seconds / devices
    return {"tflops_per_device": per_device / _TERA, **({"mfu": per_device / peak} if peak else {})}
