"""The vision tower under parallelism, by counting: how often a tile is encoded, how evenly, and what travels; ours and the original's.

Ours comes from the routes that training uses (make_cp_plan, tile_owner, tile_routes), on packs of the training mixture with resets on. The
original's is counted on the same packs, by what its code does. 14B: rows of 5,120, InternViT-300M, bf16. Dummy tiles count as encodes,
as if the tower trained.
    python scripts/bench/vision.py [--packs 200]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import numpy as np
    from length_mix import TOKENS_PER_TILE
    from plan import draw_packs

    from mindspeed_vita.checkpoint.hf.weights import native_tensors
    from mindspeed_vita.config import MODULES, model_config_from_dict
    from mindspeed_vita.sharding import index, make_cp_plan, tile_owner, tile_routes
    from mindspeed_vita.sharding.cp_plan import CPPlan

CASES = ((2, 16384, 8, 1, 8), (3, 131072, 8, 2, 4), (3, 131072, 8, 8, 1), (4, 1048576, 8, 8, 1))
"""Stage of the mixture, tokens a pack, tp, cp, dp; all but the third are the paper's layouts."""
BATCH = {2: 528, 3: 64, 4: 8}
"""Packs of an optimizer step."""
MODEL = model_config_from_dict({"preset": "14b"})
ROWS = MODEL.tokens_per_tile
ROW_BYTES = 2 * MODEL.language.hidden_size
FEATURE_BYTES = 2 * (MODEL.vision.grid**2 + 1) * MODEL.vision.hidden_size
"""Hidden states of one tile inside the tower."""
PIXELS = 3 * MODEL.vision.tile_size**2


@dataclass(frozen=True)
class Pack:
    """One pack: its plan, where its tiles' rows start, and the layout."""

    cp_plan: CPPlan
    first: np.ndarray
    tp: int

    @property
    def cp(self) -> int:
        return self.cp_plan.cp_size

    @property
    def tiles(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Count:
    """What one pack costs. Ranks are those of one replica, cp_rank * tp + tp_rank."""

    encodes: float
    """Tiles through a whole tower, dummies included; tp ranks that share one count as one."""
    share: np.ndarray
    """Tower work of each rank, in tiles through a whole tower."""
    forward: np.ndarray
    """Bytes each rank sends in the forward pass."""
    backward: np.ndarray
    """Bytes each rank sends in the backward pass, where tower and projector train."""


def reduced(size: float, ranks: int) -> float:
    """Bytes a rank sends for a ring all-reduce of `size` bytes."""
    return 2 * size * (ranks - 1) / ranks


def tower_traffic(pack: Pack, tiles: np.ndarray) -> np.ndarray:
    """Bytes a rank sends for the all-reduces of a tower cut over tp, one pass over `tiles` of each rank: two a layer."""
    return 2 * MODEL.vision.num_layers * reduced(FEATURE_BYTES, pack.tp) * tiles


def row_traffic(pack: Pack, tensor: bool) -> tuple[np.ndarray, np.ndarray]:
    """(bytes of rows each rank sends to others, bytes of gradients it sends back), by the real routes of all ranks."""
    sent, received = [], []
    for rank in range(pack.tp * pack.cp):
        route = tile_routes(pack.cp_plan, pack.first, ROWS, pack.tp, rank, tensor=tensor)
        me = rank // pack.tp if tensor else rank
        sent.append(sum(route.send_counts) - route.send_counts[me])
        received.append(sum(route.recv_counts) - route.recv_counts[me])
    return np.array(sent) * ROW_BYTES, np.array(received) * ROW_BYTES


def balanced(pack: Pack) -> Count:
    """Whole towers, tiles shared out over tp x cp."""
    encoded = np.array([max(1, len(owned)) for owned in tile_owner(pack.tiles, pack.tp * pack.cp)])
    return Count(encoded.sum(), encoded, *row_traffic(pack, tensor=False))


def tensor(pack: Pack) -> Count:
    """A tower cut over tp, tiles shared out over cp; each tp rank decodes a part and sends the pixels, uint8, to the others."""
    encoded = np.array([max(1, len(owned)) for owned in tile_owner(pack.tiles, pack.cp)])
    per_rank = np.repeat(encoded, pack.tp)
    owned = np.array([len(tiles) for tiles in tile_owner(pack.tiles, pack.tp * pack.cp)])
    forward, backward = row_traffic(pack, tensor=True)
    forward = forward + tower_traffic(pack, per_rank) + (pack.tp - 1) * PIXELS * owned
    leaving = reduced(FEATURE_BYTES, pack.tp) * per_rank  # the gradient of the tower's output is summed over tp
    return Count(encoded.sum(), per_rank / pack.tp, forward, backward + tower_traffic(pack, per_rank) + leaving)


def original(pack: Pack, seen: Sequence[int]) -> Count:
    """The original: a tower cut over tp on each context rank, for `seen` tiles of each; bf16 pixels of all tiles broadcast over tp."""
    per_rank = np.repeat(np.array(seen), pack.tp)
    pixels = 2 * PIXELS * max(1, pack.tiles) * (pack.tp - 1) / pack.tp
    return Count(float(sum(seen)), per_rank / pack.tp, tower_traffic(pack, per_rank) + pixels, tower_traffic(pack, per_rank))


def original_general(pack: Pack) -> Count:
    """Every context rank encodes every tile; one blank tile in a pack without any."""
    return original(pack, [max(1, pack.tiles)] * pack.cp)


def original_causal(pack: Pack) -> Count:
    """A context rank encodes the tiles that touch its two zigzag chunks; all of them, if none does."""
    zigzag = make_cp_plan(np.array([0, pack.cp_plan.num_tokens]), pack.cp)
    tokens = pack.first[:, None] + np.arange(ROWS)
    touched = [int(np.isin(tokens, index(zigzag, rank)).any(axis=1).sum()) for rank in range(pack.cp)]
    return original(pack, [count or max(1, pack.tiles) for count in touched])


SCHEMES: dict[str, Callable[[Pack], Count]] = {
    "balanced": balanced,
    "tensor": tensor,
    "original, causal": original_causal,
    "original, general": original_general,
}


def make_packs(stage: int, capacity: int, tp: int, cp: int, count: int) -> list[Pack]:
    """Packs of the mixture; a sample's tiles lie one behind the other before its text, each between two brackets."""
    packs = []
    for tokens, tiles in draw_packs(stage, capacity, count):
        starts = np.concatenate([[0], np.cumsum(tokens)])
        first = [start + 1 + TOKENS_PER_TILE * np.arange(number) for start, number in zip(starts, tiles)]
        padding = capacity - int(starts[-1])
        bounds = np.append(starts, capacity) if padding else starts
        packs.append(Pack(make_cp_plan(bounds, cp, padding=padding), np.concatenate(first).astype(np.int64), tp))
    return packs


def parameter_counts() -> dict[str, int]:
    """Parameters of tower, projector and (one layer of) the language model."""
    tensors = native_tensors(replace(MODEL, language=replace(MODEL.language, num_layers=1)))
    return {module: sum(tensor.numel() for name, tensor in tensors.items() if name.startswith(module + ".")) for module in MODULES}


def table_row(packs: list[Pack], scheme: Callable[[Pack], Count]) -> str:
    """Encodes a tile, work of the busiest rank over an even share, MB a rank sends for a tile: forward, at most, and both ways."""
    counts = [scheme(pack) for pack in packs]
    tiles, ranks = sum(pack.tiles for pack in packs), packs[0].tp * packs[0].cp
    # packs run one after the other, each as long as its busiest rank
    busiest = sum(count.share.max() for count in counts) * ranks / tiles
    forward, most = (sum(float(pick(count.forward)) for count in counts) / tiles / 1e6 for pick in (np.mean, np.max))
    back = sum(float(count.backward.mean()) for count in counts) / tiles / 1e6
    moved = " | ".join(f"{size:.3f}" if size < 10 else f"{size:.1f}" for size in (forward, most, forward + back))
    return f"{sum(count.encodes for count in counts) / tiles:.3f} | {busiest:.2f} | {moved}"


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packs", type=int, default=200, help="packs of 16K and 128K; a fifth of it of 1M")
    wanted = parser.parse_args().packs
    print("| tokens, tp x cp, tiles per pack | | encodes per tile | busiest rank / even "
          "| MB per tile and rank | busiest rank | both ways |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    sizes, sums = parameter_counts(), []
    for stage, capacity, tp, cp, dp in CASES:
        packs = make_packs(stage, capacity, tp, cp, wanted // 5 if capacity > 2**17 else wanted)
        tiles = sum(pack.tiles for pack in packs) / len(packs)
        for name, scheme in SCHEMES.items():
            print(f"| {capacity:,}, {tp} x {cp}, {tiles:.0f} | {name} | {table_row(packs, scheme)} |", flush=True)
        tiles_of_step = tiles * BATCH[stage] / dp
        each = [reduced(4 * sizes[module], tp) / tiles_of_step / 1e6 for module in ("vision", "projector")]
        sums.append(f"| {capacity:,}, {tp} x {cp}, dp {dp} | {tiles_of_step:,.0f} | {each[0]:.3f} | {each[1]:.3f} |")
    print("\nSum of fp32 gradients over tp, once per step: MB per tile and rank.\n")
    print("| tokens, tp x cp | tiles of a step and replica | tower, balanced | projector, both modes |\n|---|---|---|---|")
    print("\n".join(sums))


if __name__ == "__main__":
    main()
