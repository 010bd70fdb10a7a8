"""Compares the planner's times with published ones, and prints the tables of docs/planner.md. Nothing here was fitted.

python -m scripts.bench.plan_times            # decoders from shapes: a second
python -m scripts.bench.plan_times --stages   # and the original's four stages, from traces: two minutes of one core
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import torch  # noqa: F401 - the planner needs it

os.environ.setdefault("DEVICE", "cpu")
ROOT = Path(__file__).resolve().parents[2]
STAGES = ((1, 192, 528, 1000, 24), (2, 192, 528, 5000, 76), (3, 512, 64, 1000, 26), (4, 512, 8, 500, 78))
"""Stage, devices, global batch, steps, and hours that its authors report for the 14B model (Long-VITA's repository, issue 5).

The hours contain loading, saving and stops. The code was the original's, not this project's. Their nodes had 16 NPUs of 64 GB.
"""


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", action="store_true", help="trace the original's four stages as well")
    arguments = parser.parse_args()
    decoders()
    if arguments.stages:
        stages()
    return 0


def decoders() -> None:
    """Published training speeds of decoders."""
    with packages_needed():
        from mindspeed_vita.planner.device import load_device
        from mindspeed_vita.planner.published import TRAINING

    print("| decoder | layout | published, tokens/s per device | modelled | off by | if tp is hidden |\n|---|---|---|---|---|---|")
    for row in TRAINING:
        device = load_device(row.device)
        hidden = replace(row, layout=replace(row.layout, tensor_overlaps=True))
        found, other = row.predicted(device), hidden.predicted(device)
        cut = f"{row.layout.world} x {row.device}, tp {row.layout.tp}, pp {row.layout.pp}"
        off = f"{found / row.speed - 1:+.1%} | {other / row.speed - 1:+.1%}"
        print(f"| {row.name} | {cut} | {row.speed:,.0f} | {found:,.0f} | {off} |")


def stages() -> None:
    """Seconds of a step that follow from the published hours of the four stages."""
    with packages_needed():
        from mindspeed_vita.config import load_recipe
        from mindspeed_vita.planner.children import Job, trace_all
        from mindspeed_vita.planner.device import load_device
        from mindspeed_vita.planner.timing import time_layout

    for name in ("DATA_ROOT", "TOKENIZER", "INIT_FROM", "OUTPUT_ROOT", "BASE_WEIGHTS"):
        os.environ.setdefault(name, "x")  # the recipes name them; nothing is read there
    folder = ROOT / "examples" / "long_vita_14b"
    recipes = [load_recipe(folder / f"stage{stage}.yaml", [f"train.global_batch={batch}"]) for stage, _, batch, _, _ in STAGES]
    jobs = [Job(recipe=recipe, world=world, rank=0) for recipe, (_, world, _, _, _) in zip(recipes, STAGES)]
    print("\n| stage | devices | seconds of a step, from the reported hours | modelled | off by |\n|---|---|---|---|---|")
    for (stage, world, _, steps, hours), recipe, trace in zip(STAGES, recipes, trace_all(jobs, 1)):
        found, reported = time_layout(recipe, world, [trace], load_device("910B")).modelled, hours * 3600 / steps
        print(f"| {stage} | {world} | {reported:.1f} | {found:.1f} | {found / reported - 1:+.0%} |")


if __name__ == "__main__":
    sys.exit(main())
