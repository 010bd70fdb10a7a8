"""What a save costs, by data-parallel ranks: bytes of tensors sent and written by a rank, and seconds, next to gathering in the same run.

    OMP_NUM_THREADS=1 DEVICE=cpu python -m scripts.bench.saving [--rounds 3] [--hidden 512] [--layers 8]

"gathered" is the way of version 0.1.0 (tests/distributed/saving_runs.py): each parameter's moments go to one rank, and the first
data-parallel rank writes all weights. The ways take turns. Seconds are those of the slowest rank, from a common start. Those of
"returns" are the seconds after which training goes on with `checkpoint.background`, and those of "publishes" how long it stands still
when all ranks have written that step: each such save removes the step before it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Callable

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import torch
    import torch.distributed as dist

    from mindspeed_vita.checks.parity.pool import LayoutPool
    from mindspeed_vita.config import Recipe, recipe_from_dict

WAYS = ("gathered", "own ranges", "own ranges, returns", "own ranges, publishes")


def recipe_of(hidden: int, layers: int) -> Recipe:
    """A decoder in bf16 with a small tower."""
    language = {
        "num_layers": layers, "hidden_size": hidden, "num_heads": hidden // 64, "num_kv_heads": 1,
        "ffn_hidden_size": 4 * hidden, "vocab_size": 32_768,
    }  # fmt: skip
    return recipe_from_dict({"model": {"preset": "tiny", "language": language}, "train": {"precision": "bf16", "global_batch": 4}})


def held(folder: Path) -> int:
    """Bytes of tensors that this rank wrote."""
    from mindspeed_vita.files.safetensors_file import SafetensorsFile

    files = [SafetensorsFile(path) for path in folder.rglob(f"rank_{dist.get_rank():05d}.safetensors")]
    return sum(entry.stop - entry.start for file in files for entry in file.entries.values())


def measured(layout: Any, *, hidden: int, layers: int, rounds: int, folder: str) -> dict[str, dict[str, list[float]]]:
    """This rank's bytes and seconds of each way."""
    from mindspeed_vita.checkpoint.native import checkpoint as native
    from mindspeed_vita.engine import optimizer as optim
    from mindspeed_vita.parallel.build import build_model
    from mindspeed_vita.platform import get_platform
    from tests.distributed.saving_runs import Collectives, write_gathered

    recipe = recipe_of(hidden, layers)
    wrapped = optim.wrap_model(build_model(recipe, layout))
    optimizer = optim.build_optimizer(wrapped, recipe, get_platform())
    optimizer.step()  # makes the moments
    state = native.TrainState(step=1, packs=1, fingerprint="", failed_samples=(), layout={"dp": layout.dp_size})
    told: dict[str, Any] = {"model": wrapped.module, "optimizer": optimizer, "recipe": recipe, "rng": {}, "keep": 0}
    places = {way: Path(folder) / way.replace(" ", "_").replace(",", "") for way in WAYS}
    writers: list[Any] = []
    saves: dict[str, Callable[[], Any]] = {
        "gathered": lambda: write_gathered(optimizer, wrapped.module, places["gathered"]),
        "own ranges": lambda: native.save(places["own ranges"], state, **told),
        "own ranges, returns": lambda: writers.append(native.start_save(places["own ranges, returns"], state, background=True, **told)),
    }

    def publish(number: int) -> float:
        """Saves in the background, and waits until that is written; the seconds that training then stands still."""
        given = {**told, "keep": 1, "background": True}
        writer = native.start_save(places["own ranges, publishes"], replace(state, step=number + 1), **given)
        while not writer.written():
            time.sleep(0.05)
        dist.barrier()
        started = time.perf_counter()
        writer.finish()
        return time.perf_counter() - started

    found: dict[str, dict[str, list[float]]] = {way: {"seconds": []} for way in WAYS}
    for number in range(rounds + 1):
        for way in WAYS[:-1]:
            dist.barrier()
            with Collectives() as collectives:
                started = time.perf_counter()
                saves[way]()
                seconds = time.perf_counter() - started
            for writer in writers:
                writer.finish()
            writers.clear()
            if number:  # the first round warms up
                found[way]["seconds"].append(seconds)
            tensors = [tensor for tensor in collectives.sent if tensor.dtype.is_floating_point]
            found[way].update(sent=[sum(tensor.size for tensor in tensors)], written=[held(places[way])])
            dist.barrier()
            if dist.get_rank() == 0:
                shutil.rmtree(places[way])
            dist.barrier()
        stood_still = publish(number)
        if number:
            found[WAYS[-1]]["seconds"].append(stood_still)
        found[WAYS[-1]].update(sent=[0], written=[held(places[WAYS[-1]])])
    return found


def main() -> None:
    """Prints a row for each way and number of ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 3), ("hidden", 512), ("layers", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    sizes = parser.parse_args()
    torch.set_num_threads(1)
    pool = LayoutPool(4)
    print("| dp | way | MB of tensors sent, busiest rank | MB written, busiest rank | s, each round | median |\n|---|---|---|---|---|---|")
    with TemporaryDirectory() as folder:
        for dp in (1, 2, 4):
            ranks = pool.run("scripts.bench.saving:measured", dp=dp, folder=folder, **vars(sizes))
            for way in WAYS:
                seconds = [max(each) for each in zip(*(rank[way]["seconds"] for rank in ranks))]
                sent, written = (max(rank[way][what][0] for rank in ranks) / 1e6 for what in ("sent", "written"))
                each = ", ".join(f"{second:.3f}" for second in seconds)
                print(f"| {dp} | {way} | {sent:.1f} | {written:.1f} | {each} | {median(seconds):.3f} |", flush=True)
    pool.close()


if __name__ == "__main__":
    main()
