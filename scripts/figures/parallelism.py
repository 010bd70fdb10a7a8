"""Draws docs/figures/parallelism.svg: who holds which packs, layers, heads, tokens and tiles at tp 2, pp 2, cp 2, dp 2.

Everything drawn is asked of the code that training uses (sharding, megatron's rank order), nothing is drawn from memory.
    python scripts/figures/parallelism.py [OUTPUT.svg]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Sequence

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import matplotlib
    import numpy as np

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    from mindspeed_vita import sharding

TP, PP, CP, DP = 2, 2, 2, 2
LAYERS, QUERY_HEADS, KV_HEADS, TOKENS, TILES = 8, 8, 2, 48, 7
DOCUMENTS = [0, 19, 20, 41, 48]
COLOURS = ["#4C78A8", "#F58518", "#54A24B", "#E45756"]


def cells(axis: plt.Axes, row: float, owners: Sequence[int], labels: Sequence[str], names: Sequence[str]) -> None:
    """One row of cells, coloured by owner."""
    for place, (owner, label) in enumerate(zip(owners, labels)):
        axis.add_patch(plt.Rectangle((place, row), 1, 0.8, facecolor=COLOURS[owner], edgecolor="white"))
        axis.text(place + 0.5, row + 0.4, label, ha="center", va="center", fontsize=6, color="white")
    handles = [plt.Rectangle((0, 0), 1, 1, facecolor=COLOURS[owner]) for owner in range(len(names))]
    axis.legend(handles, names, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7, frameon=False)


def panel(axis: plt.Axes, title: str, width: int, rows: float = 1) -> None:
    """Frame of one panel."""
    axis.set_title(title, loc="left", fontsize=8)
    axis.set_xlim(0, width)
    axis.set_ylim(0, rows)
    axis.axis("off")


def token_owners() -> tuple[np.ndarray, np.ndarray]:
    """Context-parallel and tensor-parallel (sequence parallel) owner of every token."""
    cp_plan = sharding.make_cp_plan(np.array(DOCUMENTS), CP)
    cp_owner, tp_owner = np.zeros(TOKENS, dtype=int), np.zeros(TOKENS, dtype=int)
    for rank in range(CP):
        owned = sharding.index(cp_plan, rank)
        cp_owner[owned] = rank
        tp_owner[owned] = np.arange(len(owned)) // (len(owned) // TP)
    return cp_owner, tp_owner


def main(output: Path) -> None:
    """Draws the figure."""
    figure, axes = plt.subplots(6, 1, figsize=(9, 6.4), gridspec_kw={"height_ratios": [1, 1, 1, 1, 1, 1.6], "hspace": 0.75})
    packs = 8
    panel(axes[0], f"data parallel: the packs of one step (dp {DP})", packs)
    cells(axes[0], 0, [pack % DP for pack in range(packs)], [f"pack {pack}" for pack in range(packs)], [f"dp {rank}" for rank in range(DP)])

    stage = [layer // (LAYERS // PP) for layer in range(LAYERS)]
    panel(axes[1], f"pipeline parallel: tower, projector, embedding, decoder layers, head (pp {PP})", LAYERS + 4)
    names = ["tower", "proj.", "embed", *(f"layer {layer}" for layer in range(LAYERS)), "head"]
    cells(axes[1], 0, [0, 0, 0, *stage, PP - 1], names, [f"pp {rank}" for rank in range(PP)])

    heads = QUERY_HEADS + KV_HEADS
    owners = [head // (QUERY_HEADS // TP) for head in range(QUERY_HEADS)] + [head // (KV_HEADS // TP) for head in range(KV_HEADS)]
    title = f"tensor parallel: {QUERY_HEADS} query and {KV_HEADS} key-value heads, and equal shares of each feed-forward layer (tp {TP})"
    panel(axes[2], title, heads)
    labels = [f"q {head}" for head in range(QUERY_HEADS)] + [f"kv {head}" for head in range(KV_HEADS)]
    cells(axes[2], 0, owners, labels, [f"tp {rank}" for rank in range(TP)])

    cp_owner, tp_owner = token_owners()
    panel(axes[3], f"context parallel: {TOKENS} tokens of a pack in {2 * CP} chunks, zigzag (cp {CP})", TOKENS)
    cells(axes[3], 0, cp_owner.tolist(), [""] * TOKENS, [f"cp {rank}" for rank in range(CP)])
    for bound in DOCUMENTS[1:-1]:
        axes[3].plot([bound, bound], [-0.1, 0.9], color="black", linewidth=1.2)
    axes[3].text(0, -0.35, "black bars: document bounds (attention stays inside with resets on)", fontsize=6)

    panel(axes[4], "sequence parallel: between attention and feed-forward, tp ranks share the tokens of their cp rank", TOKENS)
    group = [f"cp {rank // TP} tp {rank % TP}" for rank in range(TP * CP)]
    cells(axes[4], 0, (cp_owner * TP + tp_owner).tolist(), [""] * TOKENS, group)

    panel(axes[5], f"tiles: {TILES} tiles of the pack, shared out over tp x cp on the first stage, then rows travel to their tokens", TILES)
    ranges = sharding.tile_owner(TILES, TP * CP)
    encoders = [rank for rank, owned in enumerate(ranges) for _ in owned]
    cells(axes[5], 0, encoders, [f"tile {tile}" for tile in range(TILES)], group)

    output.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams["svg.hashsalt"] = "mindspeed_vita"
    figure.savefig(output, bbox_inches="tight", metadata={"Date": None})
    print(output)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/figures/parallelism.svg"))
