"""Lengths, tiles, fill and predicted steps of each source of a mixture: as a table and as a picture (SVG)."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np

from mindspeed_vita.data.dataset import PackDataset

_BINS = 40
_COLOURS = ("#4472c4", "#ed7d31", "#70ad47", "#ffc000", "#5b9bd5", "#a5a5a5", "#9e480e", "#636363", "#997300", "#255e91")


@dataclass(frozen=True)
class SourceStatistics:
    """One source, or all of them."""

    name: str
    samples: int
    """Drawn samples of an epoch."""
    tokens: int
    tiles: int
    median: int
    """Tokens of a sample."""
    longest: int
    fill: float
    """Tokens over room, in the packs that it has a part in, each counted by that part."""
    steps: float
    """Optimizer steps of one epoch that its tokens take up."""


def source_statistics(dataset: PackDataset, global_batch: int, epoch: int = 0) -> list[SourceStatistics]:
    """Every source, then all together."""
    index, plan = dataset.index, dataset.plan(epoch)
    draws = np.asarray(index.draws)
    lengths, tiles, sources = (np.asarray(column)[draws] for column in (index.num_tokens, index.num_tiles, index.source_ids))
    pack_of = np.empty(len(draws), dtype=np.int64)
    pack_of[plan.packs.draws] = np.repeat(np.arange(len(plan.packs)), np.diff(plan.packs.pack_cu))
    # a sample takes up its share of its pack, padding included
    share = lengths / plan.tokens[pack_of]
    rows = []
    for number, name in [*enumerate(dataset.source_names), (-1, "all")]:
        mine = np.flatnonzero(sources == number) if number >= 0 else np.arange(len(draws))
        packs = float(share[mine].sum())
        rows.append(
            SourceStatistics(
                name=name,
                samples=len(mine),
                tokens=int(lengths[mine].sum(dtype=np.int64)),
                tiles=int(tiles[mine].sum(dtype=np.int64)),
                median=int(np.median(lengths[mine])),
                longest=int(lengths[mine].max()),
                fill=float(lengths[mine].sum(dtype=np.int64) / (packs * dataset.settings.seq_length)),
                steps=packs / global_batch,
            )
        )
    return rows


def table(rows: list[SourceStatistics]) -> str:
    """The rows in columns."""
    head = ("source", "samples", "tokens", "tiles", "median", "longest", "fill", "steps/epoch")
    cells = [
        (row.name, f"{row.samples:,}", f"{row.tokens:,}", f"{row.tiles:,}", f"{row.median:,}", f"{row.longest:,}", f"{row.fill:.2%}",
         f"{row.steps:,.1f}")
        for row in rows
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in (head, *cells)) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths)))
        for row in (head, *cells)
    )


def picture(dataset: PackDataset) -> str:
    """Sample lengths as stacked bars over a logarithmic axis, one colour a source: an SVG document."""
    index = dataset.index
    draws = np.asarray(index.draws)
    lengths, sources = np.asarray(index.num_tokens)[draws], np.asarray(index.source_ids)[draws]
    edges = np.geomspace(max(1, lengths.min()), lengths.max() + 1, _BINS + 1)
    counts = np.stack([np.histogram(lengths[sources == number], edges)[0] for number in range(len(dataset.source_names))])
    width, height, left, top = 900, 420, 70, 30
    scale = (height - 80) / max(1, counts.sum(axis=0).max())
    bar = (width - left - 220) / _BINS
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">']
    parts.append(f'<text x="{left}" y="18">samples by length in tokens ({len(draws):,} drawn)</text>')
    for place in range(_BINS):
        base = float(height - 50)
        for number, count in enumerate(counts[:, place].tolist()):
            tall = count * scale
            base -= tall
            colour = _COLOURS[number % len(_COLOURS)]
            parts.append(f'<rect x="{left + place * bar:.1f}" y="{base:.1f}" width="{bar - 1:.1f}" height="{tall:.1f}" fill="{colour}"/>')
    for place in range(0, _BINS + 1, 8):
        parts.append(f'<text x="{left + place * bar:.1f}" y="{height - 32}" text-anchor="middle">{edges[place]:,.0f}</text>')
    middle = top + (height - 50 - top) / 2
    parts.append(f'<text x="{left + _BINS * bar / 2:.1f}" y="{height - 10}" text-anchor="middle">tokens of a sample (logarithmic)</text>')
    parts.append(f'<text x="20" y="{middle:.1f}" transform="rotate(-90 20 {middle:.1f})" text-anchor="middle">samples</text>')
    parts.append(f'<text x="{left - 8}" y="{height - 46}" text-anchor="end">0</text>')
    parts.append(f'<text x="{left - 8}" y="{top + 10}" text-anchor="end">{counts.sum(axis=0).max():,}</text>')
    for number, name in enumerate(dataset.source_names):
        y, colour = top + 16 * number, _COLOURS[number % len(_COLOURS)]
        parts.append(f'<rect x="{width - 200}" y="{y}" width="11" height="11" fill="{colour}"/>')
        parts.append(f'<text x="{width - 184}" y="{y + 10}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])
