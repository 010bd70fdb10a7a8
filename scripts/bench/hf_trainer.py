"""Three ways to train the same weights on the same samples: the built-in engine, `--engine hf`, and a plain Trainer over the export.

    python -m scripts.bench.hf_trainer mixture              # the training mixture's lengths / 16, vocabulary of 152,064 words, 1 process
    python -m scripts.bench.hf_trainer photos               # the quickstart's photos, 2 processes; with ZeRO-2, ZeRO-3 and FSDP2
    python -m scripts.bench.hf_trainer mixture --steps 6 --rounds 1      # does it work? Its figures mean little

scripts/bench/train.py says how weights, data and the plain Trainer's batches are made, and which steps count. Tokens/s are tokens of
samples, without padding: samples a second times the mean length of the samples in the packs. Memory is the peak of rank 0's process.
Rounds alternate. DeepSpeed and accelerate must be installed: docs/guides/deepspeed.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path += [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]
from project_environment import packages_needed

with packages_needed():
    from mindspeed_vita.config import load_recipe
    from mindspeed_vita.data.dataset import build_data
    from scripts.bench.train import engine_round, prepare, recipe_of, trainer_round

ALONE = {"plain": ()}
SHARED = {"plain": (), "ZeRO-2": ("--deepspeed", "zero2"), "ZeRO-3": ("--deepspeed", "zero3"), "FSDP2": ("--fsdp",)}


def tokens_of_a_sample(work: str, folder: Path, packs: int) -> float:
    """Mean length of the samples in the first packs."""
    file, *overrides = recipe_of(work, folder)
    recipe = load_recipe(file, overrides)
    model = recipe.model
    dataset = build_data(
        recipe.data, tokens_per_tile=model.tokens_per_tile, tile_size=model.vision.tile_size, vocab_size=model.language.vocab_size
    )
    return sum(dataset.cost_of(pack)[0] for pack in range(packs)) / sum(len(dataset.samples_of(pack)) for pack in range(packs))


def measure(work: str, rounds: int, steps: int) -> None:
    """Prints a table: a row for each way, with the tokens/s of each round, their median as a share of the engine's, and the memory."""
    processes, ways = (2, SHARED) if work == "photos" else (1, ALONE)
    found: dict[str, list[dict[str, float]]] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        environment = prepare(work, folder)
        os.environ["VITA_OUT"] = name  # the recipe's paths
        for _ in range(rounds):
            ours = engine_round(work, folder, processes, steps, environment)
            found.setdefault("built-in engine", []).append(ours)
            for label, options in ways.items():
                result = engine_round(work, folder, processes, steps, environment, ("--engine", "hf", *options))
                found.setdefault(f"--engine hf, {label}", []).append(result)
            batch = max(1, round(ours["samples_per_step"] / processes))
            for label, grouped in (("padded", False), ("group_by_length", True)):
                result = trainer_round(work, folder, processes, steps, batch, grouped, environment)
                found.setdefault(f"Trainer, {label}, batches of {batch}", []).append(result)
        length = tokens_of_a_sample(work, folder, steps)
    print("| | tokens/s | of the built-in engine | memory, GiB |\n|---|---|---|---|")
    medians = {label: statistics.median(result["samples_per_second"] for result in results) for label, results in found.items()}
    for label, results in found.items():
        rates = ", ".join(f"{result['samples_per_second'] * length:,.0f}" for result in results)
        share, memory = medians[label] / medians["built-in engine"], max(result["memory"] for result in results) / 2**30
        print(f"| {label} | {rates} | {share:.2f} | {memory:.2f} |")


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", choices=["photos", "mixture"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()
    measure(arguments.work, arguments.rounds, arguments.steps)


if __name__ == "__main__":
    main()
