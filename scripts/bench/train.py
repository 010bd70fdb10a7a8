"""The built-in engine against transformers' Trainer: samples a second and peak memory, on the same weights, data, threads and processes.

    pip install accelerate                     # which the Trainer needs, and this project does not
    python -m scripts.bench.train              # both of these, in one table
    python -m scripts.bench.train photos       # the quickstart's photos: samples of nearly equal length, 2 processes
    python -m scripts.bench.train mixture      # the training mixture's lengths / 16, vocabulary of 152,064 words, 1 process; up to 18 GiB

Each process has one thread.
Both start from the export of the same tiny model and train all modules in fp32 by AdamW. The Trainer's batches are padded, in random order
or grouped by length (group_by_length). They hold as many samples as the engine's packs do on average. Pictures go through the export's
processor.
Rounds alternate; the first steps of each, which fill caches, do not count. Times are of a step, saving and loading left out. A round that
fails, for want of memory for instance, is told in its row, and the others run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Optional

sys.path += [str(Path(__file__).resolve().parents[level]) for level in (1, 2)]  # for `python scripts/bench/train.py` too
from project_environment import packages_needed

with packages_needed():
    import torch

    from mindspeed_vita.config import load_recipe
    from scripts.bench.length_mix import TOKENS_PER_TILE, draw

ROOT = Path(__file__).resolve().parents[2]
VITA = ["-m", "mindspeed_vita.cli.main"]
SKIPPED = 3
"""First steps of a round that do not count."""
SCALE = 16
"""The mixture's lengths are divided by this: padded logits of 152,064 words would not fit this machine's memory otherwise."""
PACK = 16384 // SCALE
WORKS = ("photos", "mixture")
HEADER = "| work | | samples/s of each round | engine / this | peak memory, GiB |\n|---|---|---|---|---|"


class Failed(RuntimeError):
    """A process of the comparison did not end well."""


def launch(command: list[str], processes: int, environment: dict[str, str]) -> str:
    """Runs a command of Python on some processes, and returns what it printed."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else []), *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        killed = " (killed, maybe for want of memory)" if done.returncode in (-9, 137) or "SIGKILL" in done.stderr else ""
        raise Failed(f"{' '.join(command)} ended with {done.returncode}{killed}:\n{done.stderr[-3000:]}")
    return done.stdout


def recipe_of(work: str, folder: Path) -> list[str]:
    """Recipe file and overrides of the engine's run."""
    settings = ["checkpoint.init_from=", "eval.mixture=", "logging.tensorboard=false", "data.index=" + str(folder / "index")]
    if work == "mixture":
        settings += ["model.language.vocab_size=152064", f"data.seq_length={PACK}", "train.global_batch=1"]
    return ["examples/tiny/stage2.yaml", f"data.mixture={folder / work}.yaml", *settings]


def write_photos(folder: Path) -> None:
    """A mixture of the quickstart's photos alone."""
    rows = folder / "data" / "photos.jsonl"
    (folder / "photos.yaml").write_text(f"dataset:\n  photos:\n    num: 5000\n    data_paths: ['{rows}']\n", encoding="utf-8")


def write_mixture(folder: Path, samples: int = 1500) -> None:
    """Texts as long as the training mixture's samples, divided by SCALE: a question as long as the tiles' tokens and half the text."""
    _, tokens, tiles = draw(2, samples)
    with (folder / "mixture.jsonl").open("w", encoding="utf-8") as file:
        for length, tile in zip(tokens.tolist(), tiles.tolist()):
            text = max(2, (length - TOKENS_PER_TILE * tile) // SCALE)
            asked, answered = (length // SCALE) - text // 2, text // 2
            if asked + answered > PACK - 40:
                continue  # longer than a pack
            turns = [{"role": role, "content": " the" * max(1, count)} for role, count in (("user", asked), ("assistant", answered))]
            file.write(json.dumps({"messages": turns}) + "\n")
    content = f"dataset:\n  mixture:\n    num: {samples}\n    data_paths: ['{folder / 'mixture.jsonl'}']\n"
    (folder / "mixture.yaml").write_text(content, encoding="utf-8")


def engine_round(
    work: str, folder: Path, processes: int, steps: int, environment: dict[str, str], options: Sequence[str] = ()
) -> dict[str, float]:
    """One run of an engine from the common weights: the built-in one, unless options of `vita train` name another."""
    directory = folder / f"run{time.time_ns()}"
    run = [f"train.steps={steps}", f"checkpoint.directory={directory}", f"checkpoint.init_from={folder / 'start'}"]
    overrides = [*(one for one in recipe_of(work, folder) if one != "checkpoint.init_from="), *run]
    launch([*VITA, "train", *options, *overrides], processes, environment)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()][SKIPPED:]
    seconds = sum(line["seconds"] for line in lines)
    samples = sum(line["samples"] for line in lines)
    return {"samples_per_second": samples / seconds, "samples_per_step": samples / len(lines), "memory": lines[-1]["memory"]}


def trainer_round(
    work: str, folder: Path, processes: int, steps: int, batch: int, grouped: bool, environment: dict[str, str]
) -> dict[str, float]:
    """One run of the Trainer over the export."""
    command = [str(Path(__file__)), work, "--trainer", str(folder), "--steps", str(steps), "--batch", str(batch)]
    return json.loads(launch([*command, *(["--grouped"] if grouped else [])], processes, environment).splitlines()[-1])


def train_by_trainer(work: str, folder: Path, steps: int, batch: int, grouped: bool) -> None:
    """The Trainer's side, in a process of its own. Rank 0 prints one line of JSON."""
    from transformers import AutoModelForCausalLM, AutoProcessor, Trainer, TrainerCallback, TrainingArguments

    export = folder / "export"
    processor = AutoProcessor.from_pretrained(export, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(export, trust_remote_code=True, dtype=torch.float32)
    name = "data/photos.jsonl" if work == "photos" else "mixture.jsonl"
    rows = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    for row in rows:
        row["input_ids"] = [0] * sum(len(turn["content"].split()) for turn in row["messages"])  # group_by_length takes their number
    collate = _collator(processor, folder / "data" / "media")
    moments: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *unused: Any, **also_unused: Any) -> None:
            moments.append(time.perf_counter())

    grouping = {"train_sampling_strategy": "group_by_length"} if grouped else {}
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=steps, per_device_train_batch_size=batch, learning_rate=2e-3, use_cpu=True,
        report_to=[], save_strategy="no", logging_strategy="no", remove_unused_columns=False, disable_tqdm=True, weight_decay=0.05,
        dataloader_num_workers=0, ddp_find_unused_parameters=False, dataloader_pin_memory=False, **grouping,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[Clock()]).train()
    if int(os.environ.get("RANK", "0")) == 0:
        counted = moments[SKIPPED - 1 :]
        rate = batch * int(os.environ.get("WORLD_SIZE", "1")) * (len(counted) - 1) / (counted[-1] - counted[0])
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"samples_per_second": rate, "memory": memory}))


def _collator(processor: Any, media: Path) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    def conversation(row: dict[str, Any]) -> list[dict[str, Any]]:
        pictures, turns = iter(row.get("images", [])), []
        for turn in row["messages"]:
            text, parts = turn["content"], []
            while text.startswith("<image>"):
                text = text.removeprefix("<image>").removeprefix("\n")
                parts.append({"type": "image", "path": str(media / next(pictures))})
            turns.append({"role": turn["role"], "content": [*parts, {"type": "text", "text": text}]})
        return turns

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "padding": True, "return_assistant_tokens_mask": True}
        inputs = processor.apply_chat_template([conversation(row) for row in rows], padding_side="right", **options)
        marked = inputs.pop("assistant_masks")
        return {**inputs, "labels": inputs["input_ids"].masked_fill(marked == 0, -100)}

    return collate


def prepare(work: str, folder: Path) -> dict[str, str]:
    """Makes the data, the common weights and their export in a folder. Returns the environment of the runs."""
    environment = {**os.environ, "DEVICE": "cpu", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment |= {"VITA_OUT": str(folder), "OMP_NUM_THREADS": "1"}
    launch(["examples/tiny/make_data.py", "--out", f"{folder}/data"], 1, environment)
    (write_photos if work == "photos" else write_mixture)(folder)
    start = [*recipe_of(work, folder), "train.steps=1", f"checkpoint.directory={folder / 'start'}"]
    load_recipe(start[0], start[1:])
    launch([*VITA, "train", *start], 1, environment)
    convert = ["convert", "--from", f"{folder}/start", "--to", "hf", "--dtype", "fp32", "--tokenizer", f"{folder}/data/tokenizer"]
    launch([*VITA, *convert, "--output", f"{folder}/export"], 1, environment)
    return environment


def compare(work: str, rounds: int, steps: int) -> None:
    """Prints a row for each round and way, and the ratios of the medians."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        environment = prepare(work, folder)
        processes = 2 if work == "photos" else 1
        found: dict[str, list[Optional[dict[str, float]]]] = {}
        for _ in range(rounds):
            ours = engine_round(work, folder, processes, steps, environment)
            batch = max(1, round(ours["samples_per_step"] / processes))
            found.setdefault("engine", []).append(ours)
            for label, grouped in (("padded", False), ("group_by_length", True)) if work == "mixture" else (("padded", False),):
                rows = found.setdefault(f"Trainer, {label}, batches of {batch}", [])
                try:
                    rows.append(trainer_round(work, folder, processes, steps, batch, grouped, environment))
                except Failed as failure:
                    print(failure, file=sys.stderr, flush=True)
                    rows.append(None)
    print_rows(work, processes, found)


def print_rows(work: str, processes: int, found: dict[str, list[Optional[dict[str, float]]]]) -> None:
    """A row for each way; None stands for a round that failed. The first way is the engine."""
    engine = 0.0
    for label, results in found.items():
        done = [result for result in results if result is not None]
        rates = ", ".join("failed" if result is None else f"{result['samples_per_second']:.1f}" for result in results)
        median = statistics.median(result["samples_per_second"] for result in done) if done else 0.0
        engine = engine or median
        ratio = f"{engine / median:.2f}" if done else ""
        memory = f"{max(result['memory'] for result in done) / 2**30:.2f}" if done else ""
        print(f"| {work}, processes: {processes} | {label} | {rates} | {ratio} | {memory} |", flush=True)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(WORKS)}; default: both")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--trainer", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--grouped", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.works) - set(WORKS):
        parser.error(f"{', '.join(sorted(unknown))} is no work; use {' or '.join(WORKS)}")
    if arguments.steps <= SKIPPED + 1:
        parser.error(f"--steps is {arguments.steps}, and the first {SKIPPED} do not count; use at least {SKIPPED + 2}")
    if importlib.util.find_spec("accelerate") is None:
        parser.error("accelerate is missing, which transformers' Trainer needs; run pip install accelerate")
    if arguments.trainer:
        train_by_trainer(arguments.works[0], arguments.trainer, arguments.steps, arguments.batch, arguments.grouped)
    else:
        print(HEADER, flush=True)
        for work in arguments.works or WORKS:
            compare(work, arguments.rounds, arguments.steps)


if __name__ == "__main__":
    main()
