"""Processor time of reading packs on a host whose ranks need the same ones: each rank tokenises, or one does (data.tokenize_once).

    OMP_NUM_THREADS=1 python scripts/bench/tokenise_once.py [--ranks 2,4,8] [--tokens 131072] [--packs 4] [--rounds 3] [--tokenizer FOLDER]

Packs of text, read by loaders without loader processes, one process for each rank. The two ways take turns. CPU-seconds are those of all
ranks; seconds are those of the slowest rank from a common start. Without --tokenizer a small one is trained first, which makes more tokens
of a text than a real one, so it needs less time for each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    from itertools import islice

    from mindspeed_vita.config.recipe import DataConfig
    from mindspeed_vita.data.dataset import PackDataset, build_data
    from mindspeed_vita.data.loader import PackLoader
    from mindspeed_vita.data.pack_share import PackShare, make_folder, remove_folder
    from mindspeed_vita.data.tiny_tokenizer import train_tokenizer

SENTENCES = "The pump of station {} runs at {} litres a minute, and its valve was replaced in week {}. Nobody heard of it again. "


def make_data(folder: Path, *, tokenizer: str, tokens: int, packs: int) -> PackDataset:
    """Text rows of some thousand characters, in packs of so many tokens."""
    if not tokenizer:
        tokenizer = str(folder / "tokenizer")
        train_tokenizer([SENTENCES.format(number, 7 * number, number % 52) for number in range(64)], 2000, folder / "tokenizer")
    with open(folder / "rows.jsonl", "w") as file:
        for number in range(packs * tokens // 800):
            text = "".join(SENTENCES.format(number, line, line % 52) for line in range(32))
            talk = [{"role": "user", "content": "What was written?"}, {"role": "assistant", "content": text}]
            file.write(json.dumps({"messages": talk}) + "\n")
    (folder / "mixture.yaml").write_text(json.dumps({"dataset": {"all": {"data_paths": [str(folder / "rows.jsonl")]}}}))
    settings = DataConfig(mixture=str(folder / "mixture.yaml"), tokenizer=tokenizer, seq_length=tokens)
    return build_data(settings, tokens_per_tile=256, tile_size=448, vocab_size=160_000)


def read(data: PackDataset, rank: int, ranks: int, folder: Path | None, packs: int, start: Any, results: Any) -> None:
    """One rank's packs; puts its CPU-seconds and its seconds."""
    followers = tuple(range(1, ranks))
    share = None if folder is None else PackShare(folder=folder, rank=rank, leader=0, followers=followers)
    loader = PackLoader(data, start_pack=0, dp_rank=0, dp_size=1, micro_batches=1, share=share)
    start.wait()
    began, used = time.perf_counter(), time.process_time()
    count = sum(1 for _ in islice(loader, packs))
    results.put((time.process_time() - used, time.perf_counter() - began))
    assert count == packs
    start.wait()  # the rank that reads keeps the folder until all have read
    loader.close()


def measured(data: PackDataset, ranks: int, packs: int, shared: bool) -> tuple[float, float]:
    """CPU-seconds of all ranks, and seconds of the slowest."""
    context = multiprocessing.get_context("fork")
    start, results = context.Barrier(ranks), context.SimpleQueue()
    folder = make_folder() if shared else None
    processes = [context.Process(target=read, args=(data, rank, ranks, folder, packs, start, results)) for rank in range(ranks)]
    for process in processes:
        process.start()
    found = [results.get() for _ in range(ranks)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    if folder is not None:
        remove_folder(folder)
    return sum(cpu for cpu, _ in found), max(seconds for _, seconds in found)


def main() -> None:
    """Prints a row for each number of ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="2,4,8")
    parser.add_argument("--tokenizer", default="")
    for name, default in (("tokens", 131_072), ("packs", 4), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder), tokenizer=told.tokenizer, tokens=told.tokens, packs=told.packs)
        packs = min(told.packs, data.num_packs(0))
        print(f"{packs} packs of {told.tokens:,} tokens, {told.rounds} rounds; CPU-s and s for each pack, median\n")
        print("| ranks | each, CPU-s | once, CPU-s | | each, s | once, s |\n|---|---|---|---|---|---|")
        for ranks in map(int, told.ranks.split(",")):
            rounds = [[measured(data, ranks, packs, shared) for shared in (False, True)] for _ in range(told.rounds)]
            (each, each_s), (once, once_s) = ([median(way[n] for way in ways) / packs for n in (0, 1)] for ways in zip(*rounds))
            print(f"| {ranks} | {each:.2f} | {once:.2f} | {once / each:.2f} | {each_s:.2f} | {once_s:.2f} |", flush=True)


if __name__ == "__main__":
    main()
