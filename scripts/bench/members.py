"""Reading pictures from files, tar shards and Parquet beside other loaders: the part `members` of data.py, which is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from peers import GRID, TILE, beyond_bare, write_shard

    from mindspeed_vita.data.media.decoder import Decoder
    from mindspeed_vita.data.media.image import picture_tiles
    from mindspeed_vita.data.media.limits import DecodeSettings
    from mindspeed_vita.data.media.members import parquet_reference, tar_reference


def bench_members(folder: Path, peers: str, picture: bytes, num_pictures: int = 400) -> None:
    """CPU time that giving a picture's tiles takes beyond bare decoding and tiling: ours by format, and that of other loaders.

    Args:
        folder: empty, for the files.
        peers: Python of an environment with the other loaders; empty: ours only.
        picture: a JPEG of 640x480 pixels.
        num_pictures: files of it.
    """
    contents = [picture + number.to_bytes(4, "little") for number in range(num_pictures)]
    for number, content in enumerate(contents):
        (folder / f"{number:04d}.jpg").write_bytes(content)
    write_shard(folder / "shard.tar", contents)
    references = {"plain files": [f"{number:04d}.jpg" for number in range(num_pictures)]}
    with tarfile.open(folder / "shard.tar") as shard:
        members = [member for member in shard if member.name.endswith("jpg")]
        references["tar shard"] = [tar_reference("shard.tar", member.offset_data, member.size, member.name) for member in members]
    for rows in (100, 1000):
        table = pa.table({"image": [{"bytes": contents[number % num_pictures]} for number in range(2 * rows)]})
        pq.write_table(table, folder / f"{rows}.parquet", row_group_size=rows)
        references[f"Parquet, row groups of {rows}"] = [parquet_reference(f"{rows}.parquet", "image", row, 0) for row in range(2 * rows)]
    decoder = Decoder(DecodeSettings())
    order = np.random.default_rng(0)
    count = GRID[0] * GRID[1] + 1
    into = np.empty((count, 3, TILE, TILE), np.uint8)

    def here(names: list[str]) -> Callable[[], Any]:
        return lambda: picture_tiles(
            str(folder / names[int(order.integers(len(names)))]), GRID, tile_size=TILE, wanted=range(count)
        )

    def protected(names: list[str]) -> Callable[[], Any]:
        return lambda: decoder.picture(names[int(order.integers(len(names)))], str(folder), GRID, range(count), into)

    base, alone = beyond_bare(contents, {name: here(names) for name, names in references.items()})
    protected(references["plain files"])()
    assert decoder.pid is not None
    child = ((~decoder.pid) << 3) | 2  # Linux's clock of another process's CPU time
    with_child = lambda: time.process_time() + time.clock_gettime(child)  # noqa: E731
    _, apart = beyond_bare(contents, {name: protected(names) for name, names in references.items()}, with_child)
    decoder.close()
    print(f"\nbare decoding and tiling: {1e3 * base / count:.3f} CPU-ms a tile; beyond it, one of {num_pictures} pictures at random:")
    print("| a picture of 640x480, 13 tiles | CPU-ms a tile, read and decoded here | in the decoder process |\n|---|---|---|")
    for name in references:
        print(f"| {name} | {1e3 * alone[name] / count:.3f} | {1e3 * apart[name] / count:.3f} |", flush=True)
    if peers:
        command = [peers, str(Path(__file__).parent / "peers.py"), str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(run.stdout.splitlines()[-1])
        for name, more in found["ways"].items():
            print(f"| {name}, one after the other (bare: {1e3 * found['bare'] / count:.3f}) | {1e3 * more / count:.3f} | |", flush=True)
