"""Draws a folder of pictures with captions, to try docs/finetune.md without pictures of your own.

Each shows a coloured ball in front of a coloured wall.

    python examples/finetune/make_pictures.py --out runs/finetune/pictures

writes OUT/*.png with OUT/captions.csv, and new pictures that are not in it to OUT/../new.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import random
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))
from project_environment import packages_needed

with packages_needed():
    from PIL import Image, ImageDraw

COLOURS = {"red": (205, 45, 40), "green": (40, 150, 60), "blue": (45, 80, 200), "yellow": (230, 200, 50), "black": (25, 25, 25)}
SIDE = 128
"""Pixels of a picture."""


def draw(ball: str, wall: str, rng: random.Random) -> Image.Image:
    """A ball of 30 to 50 pixels radius at a random place; both colours vary a little."""

    def shade(name: str) -> tuple[int, ...]:
        return tuple(min(255, max(0, value + rng.randint(-20, 20))) for value in COLOURS[name])

    picture, size = Image.new("RGB", (SIDE, SIDE), shade(wall)), rng.randint(30, 50)
    x, y = (rng.randint(size, SIDE - size) for _ in range(2))
    ImageDraw.Draw(picture).ellipse((x - size, y - size, x + size, y + size), fill=shade(ball))
    return picture


def write(folder: Path, copies: int, rng: random.Random) -> int:
    """Pictures of every two colours, and captions.csv; returns how many pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for ball, wall in itertools.permutations(COLOURS, 2):
        for copy in range(copies):
            name = f"{ball}_on_{wall}_{copy}.png"
            draw(ball, wall, rng).save(folder / name)
            rows.append((name, f"A {ball} ball in front of a {wall} wall."))
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    return len(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args()
    rng = random.Random(7)
    count, new = write(args.out, 20, rng), write(args.out.parent / "new", 2, rng)
    print(f"{count} pictures and captions.csv in {args.out}; {new} new ones in {args.out.parent / 'new'}")


if __name__ == "__main__":
    main()
