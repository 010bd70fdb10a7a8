"""Speed and memory of `vita convert`, each way, with a plain file copy of the same bytes next to it.

    python scripts/bench/convert.py --folder /data/bench [--gigabytes 4]

Needs room for about three times the weights. Prints one table in Markdown; removes what it wrote.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import torch

_CHILD = """
import os, sys, threading, time
os.environ.setdefault(*{large_pages!r})  # as vita convert does, before torch is imported
sys.path.insert(0, {root!r})
import torch, transformers
from mindspeed_vita.hf import modeling_long_vita
from mindspeed_vita.checkpoint import source, conversion
from mindspeed_vita.checkpoint.hf import export, weights
from mindspeed_vita.checkpoint.native import checkpoint
from mindspeed_vita.checkpoint.megatron import write
from mindspeed_vita.cli.main import main

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

before, peak, ended = anonymous(), 0, threading.Event()
def watch():
    global peak
    while not ended.wait(0.005):
        peak = max(peak, anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
began, processor = time.perf_counter(), time.process_time()
status = main({arguments!r})
seconds = time.perf_counter() - began
ended.set(); watcher.join()
print("MEASURED", status, seconds, peak - before, time.process_time() - processor)
"""


def recipe_of(gigabytes: float, tokenizer: Path):
    """A recipe whose weights in bf16 have about this size: the width of the 7B preset, fewer layers."""
    from mindspeed_vita.config import DataConfig, LanguageConfig, ModelConfig, Recipe

    language = LanguageConfig(num_layers=1, hidden_size=3584, num_heads=28, num_kv_heads=4, ffn_hidden_size=18944, vocab_size=32768)
    layer = 2 * (3584 * (3584 + 2 * 512) + 3584 * 3584 + 3 * 3584 * 18944)
    rest = 2 * (2 * 32768 * 3584 + 320_000_000)
    layers = max(1, round((gigabytes * 1e9 - rest) / layer))
    return Recipe(model=ModelConfig(language=replace(language, num_layers=layers)), data=DataConfig(tokenizer=str(tokenizer)))


def make_source(folder: Path, gigabytes: float) -> Path:
    """A native checkpoint of random bf16 weights."""
    from mindspeed_vita.checkpoint.hf.weights import native_tensors
    from mindspeed_vita.checkpoint.native import checkpoint as native
    from mindspeed_vita.data.tiny_tokenizer import train_tokenizer
    from mindspeed_vita.files.tensors import Made, Spec

    train_tokenizer(["What is in this picture? A photo of a cat on a table."] * 4, 320, folder / "tokenizer")
    recipe = recipe_of(gigabytes, folder / "tokenizer")
    specs = {name: Spec(torch.bfloat16, tuple(tensor.shape)) for name, tensor in native_tensors(recipe.model).items()}
    words = torch.randint(-(2**62), 2**62, (1 << 20,))

    def make(name: str) -> torch.Tensor:
        count = torch.Size(specs[name].shape).numel()
        return words.view(torch.int16).repeat(-(-count // (words.numel() * 4)))[:count].view(torch.bfloat16).view(specs[name].shape)

    native.save_full_weights(folder / "native", Made(specs, make), recipe, max_file_bytes=2_000_000_000)
    return folder / "native"


def size_of(folder: Path) -> int:
    """Bytes of the files of weights in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in (".safetensors", ".pt"))


def copy(source: Path, target: Path) -> tuple[float, float]:
    """Seconds of cp alone, and until its files are on the disk, which a conversion waits for too. The target is removed."""
    os.sync()  # what others left to write is not ours
    began = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    copied = time.perf_counter() - began
    subprocess.run(["sync", *(str(path) for path in target.rglob("*") if path.is_file())], check=True)
    seconds = time.perf_counter() - began
    shutil.rmtree(target)
    return copied, seconds


def command(words: list[str]) -> tuple[float, int, float]:
    """Seconds, peak of memory in bytes that no file backs, and processor seconds of `vita` in a process of its own, without imports."""
    from mindspeed_vita.cli.convert import LARGE_PAGES

    root = str(Path(__file__).resolve().parents[2])
    program = _CHILD.format(root=root, arguments=words, large_pages=LARGE_PAGES)
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    line = next((line for line in child.stdout.splitlines() if line.startswith("MEASURED")), "")
    if not line or line.split()[1] != "0":
        sys.exit(child.stdout + child.stderr)
    return float(line.split()[2]), int(line.split()[3]), float(line.split()[4])


def main() -> int:
    """Every way once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="made, used and removed")
    parser.add_argument("--gigabytes", type=float, default=4.0)
    told = parser.parse_args()
    told.folder.mkdir(parents=True)
    shard = 2_000_000_000
    try:
        source = make_source(told.folder, told.gigabytes)
        largest = largest_of(source)
        print(f"{size_of(source) / 1e9:.2f} GB of weights, shards of {shard / 1e9:.0f} GB, largest tensor group {largest / 1e9:.2f} GB, "
              f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")  # fmt: skip
        print("| way | seconds | processor seconds | MB/s | cp, MB/s | cp and sync, MB/s | share of cp | share of cp and sync | "
              "peak memory, GB | over the largest shard | over the largest group |")
        print("|---|---|---|---|---|---|---|---|---|---|---|")
        ways = [("native", "hf"), ("hf", "native"), ("native", "mindspeed-llm"), ("mindspeed-llm", "native")]
        folders = {"native": source}
        for start, to in ways:
            target = told.folder / (to if to not in folders else f"{to}-again")
            cp, synced = copy(folders[start], told.folder / "copy")
            more = ["--tokenizer", str(told.folder / "tokenizer")] if start == "hf" else ["--tp", "2"] if to == "mindspeed-llm" else []
            more += ["--max-shard-size", str(shard)] if to != "mindspeed-llm" else []
            os.sync()
            seconds, peak, processor = command(["convert", "--from", str(folders[start]), "--to", to, "--output", str(target), *more])
            size = size_of(target)
            speeds = [f"{size / each / 1e6:,.0f}" for each in (seconds, cp, synced)]
            shares = [f"{each / seconds:.2f}" for each in (cp, synced)]
            memory = [f"{peak / 1e9:.2f}", f"{peak / shard:.2f}", f"{peak / largest:.2f}"]
            print("|", " | ".join([f"{start} to {to}", f"{seconds:.1f}", f"{processor:.1f}", *speeds, *shares, *memory]), "|", flush=True)
            if target.name.endswith("-again"):
                shutil.rmtree(target)
            else:
                folders[to] = target
        return 0
    finally:
        shutil.rmtree(told.folder)


def largest_of(source: Path) -> int:
    """Bytes of the largest tensor group, which is one native tensor."""
    from mindspeed_vita.checkpoint.native import checkpoint as native

    return max(spec.nbytes for spec in native.read_full_weights(source)[0].specs().values())


if __name__ == "__main__":
    sys.exit(main())
