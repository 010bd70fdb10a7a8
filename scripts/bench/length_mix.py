"""Sample lengths like those of Long-VITA's training mixture, for benchmarks: the paper's sample counts, assumed sizes and durations.

Counts per source are Table 1 of arXiv 2502.05177; picture sizes, durations and text lengths are assumptions, fixed here so that all
figures are measured on one draw. Tokens and tiles follow the released layout (hf/tiling, hf/token_layout). numpy only.
    python scripts/bench/length_mix.py 2      # summary of a stage
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import numpy as np

    from mindspeed_vita.hf.tiling import choose_grid

TOKENS_PER_TILE = 258  # 256 and its two brackets
MAX_FRAMES = {2: 64, 3: 512, 4: 4096}
PICTURES = {
    "coco": {(640, 480): 45, (480, 640): 15, (640, 427): 15, (427, 640): 5, (500, 375): 10, (640, 640): 5, (640, 360): 5},
    "web": {(500, 375): 20, (336, 336): 20, (640, 427): 20, (800, 600): 15, (600, 800): 10, (1280, 720): 10, (400, 600): 5},
    "doc": {(1700, 2200): 70, (2200, 1700): 20, (1240, 1754): 10},
    "comic": {(1988, 3056): 60, (1280, 1920): 40},
}
"""Width and height of pictures, in percent of a kind."""


@dataclass(frozen=True)
class Source:
    """One data set: thousands of samples, and how long they are (medians of log-normal lengths)."""

    name: str
    thousands: float
    text: int
    """Median text tokens."""
    spread: float = 0.6
    """Standard deviation of the logarithm of the text length."""
    longest: int = 3000
    """Most text tokens."""
    pictures: str = ""
    """Kind of picture, or none."""
    count: tuple[int, int] = (1, 1)
    """Fewest and most pictures."""
    seconds: float = 0
    """Median duration of a video, at one frame a second; 0: no video."""
    seconds_spread: float = 0
    most_seconds: int = 0


def sources(stage: int) -> list[Source]:
    """The mixture of stage 2, 3 or 4; from stage 3 on a tenth of the general sources."""
    tenth = 1.0 if stage == 2 else 0.1
    general = [
        Source("LLaVA-ReCap", 3500 * tenth, 180, pictures="web"),
        Source("ALLaVA", 1400 * tenth, 350, pictures="web"),
        Source("LVIS", 222 * tenth, 400, pictures="coco"),
        Source("ShareGPT4V", 1300 * tenth, 220, pictures="coco"),
        Source("cauldron", 1100 * tenth, 120, pictures="coco"),
        Source("Docmatix", 1200 * tenth, 300, longest=6000, pictures="doc", count=(1, 4)),
        Source("OneVision-Mid", 444 * tenth, 250, pictures="coco"),
        Source("OneVision", 3600 * tenth, 200, pictures="web"),
        Source("M4", 860 * tenth, 250, longest=6000, pictures="coco", count=(2, 6)),
        Source("VideoGPT+", 575 * tenth, 250, seconds=60, seconds_spread=0.9, most_seconds=600),
        Source("ShareGemini", 323 * tenth, 250, seconds=30, seconds_spread=0.6, most_seconds=120),
        Source("OpenHermes", 1000 * tenth, 380, 0.8, 8000),
        Source("dolly", 15 * tenth, 180, 0.8, 4000),
        Source("MetaMath", 395 * tenth, 230, 0.5, 2000),
        Source("MathInstruct", 262 * tenth, 200, 0.6, 2000),
        Source("Orca-Math", 200 * tenth, 260, 0.5, 2000),
        Source("atlas", 17800 * tenth, 35, 0.3, 300),
        Source("goat", 1700 * tenth, 90, 0.6, 600),
        Source("camel", 50 * tenth, 500, 0.5, 3000),
    ]
    if stage == 2:
        return general
    long = [
        Source("Comic-9K", 9, 1200, longest=6000, pictures="comic", count=(10, 30)),
        Source("LLaVA-Video", 1600, 250, seconds=45, seconds_spread=1.0, most_seconds=3600 if stage == 4 else 1800),
        Source("Long-Instruction", 16, 12000, 0.8, 120000),
        Source("LongForm", 23, 700, 0.7, 8000),
        Source("LongAlign", 10, 18000, 0.7, 65000),
        Source("LongCite", 45, 18000, 0.8, 128000),
        Source("LongWriter", 6, 6000, 0.8, 32000),
        Source("LongQLoRA", 39, 6000, 0.8, 32000),
        Source("LongAlpaca", 12, 8000, 0.9, 64000),
        Source("Long-Data", 98, 9000, 0.8, 120000),
    ]
    film = [Source("MovieNet", 1, 250, seconds=6500, seconds_spread=0.3, most_seconds=12000)] if stage == 4 else []
    return general + long + film


def draw(stage: int, num_samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(source index, tokens, tiles) of samples drawn in proportion to the sources' sizes, int64 each. A long video may exceed a pack."""
    rng = np.random.default_rng(seed)
    mixture = sources(stage)
    weights = np.array([source.thousands for source in mixture])
    picked = rng.choice(len(mixture), size=num_samples, p=weights / weights.sum())
    tokens, tiles = np.zeros(num_samples, dtype=np.int64), np.zeros(num_samples, dtype=np.int64)
    for number, source in enumerate(mixture):
        where = np.flatnonzero(picked == number)
        low = 20 if source.pictures or source.seconds else 10
        tokens[where] = _lognormal(rng, source.text, source.spread, low, source.longest, len(where))
        if source.seconds:
            frames = _lognormal(rng, source.seconds, source.seconds_spread, 5, min(source.most_seconds, MAX_FRAMES[stage]), len(where))
            tokens[where] += TOKENS_PER_TILE * frames
            tiles[where] += frames
        if source.pictures:
            costs, percent = _picture_costs(source.pictures)
            for place, count in zip(where, rng.integers(source.count[0], source.count[1] + 1, len(where))):
                drawn = costs[rng.choice(len(costs), size=count, p=percent)].sum(0)
                tokens[place] += drawn[0]
                tiles[place] += drawn[1]
    return picked, tokens, tiles


def _lognormal(rng: np.random.Generator, median: float, spread: float, low: int, high: int, count: int) -> np.ndarray:
    return rng.lognormal(np.log(median), spread, count).astype(np.int64).clip(low, high)


def _picture_costs(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, tiles) of each picture size of a kind, and its share."""
    costs = []
    for width, height in PICTURES[kind]:
        columns, rows = choose_grid(width, height)
        tiles = columns * rows + (columns * rows > 1)
        costs.append((TOKENS_PER_TILE * tiles + (rows if tiles > 1 else 0), tiles))
    percent = np.array(list(PICTURES[kind].values()), dtype=np.float64)
    return np.array(costs), percent / percent.sum()


if __name__ == "__main__":
    chosen = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    lengths = draw(chosen, 100_000)[1]
    quantiles = np.percentile(lengths, [50, 99]).astype(int)
    print(f"stage {chosen}: mean {lengths.mean():.0f}, median {quantiles[0]}, 99% {quantiles[1]}, longest {lengths.max()} tokens")
