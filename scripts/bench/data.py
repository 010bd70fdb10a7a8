"""Pictures, frames and video files per CPU-second, ours beside the original's way, in one run; host memory of a film; waiting for data.

    OMP_NUM_THREADS=1 python scripts/bench/data.py [--parts tiles,frames,video,film,wait,index,files,members]
        [--video FILE] [--seconds 600] [--rows 50000] [--files 5000] [--peers PYTHON]

The original's way is written anew from its description: Pillow resizes the whole picture, every tile becomes float32 and is normalised
on the CPU; a frame is padded to a square, resized and normalised; decord reads frame by frame. Without --video a 720p H.264 file of
--seconds is made first, at 30 frames a second (minutes of work). CPU-seconds are those of this process, one thread. The parts index and
files make data sets of --rows rows and of --files files first; their CPU-seconds are those of all processes.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))
from project_environment import packages_needed

with packages_needed():
    import numpy as np
    from PIL import Image

    from mindspeed_vita.data.media.decoder import Decoder, close_decoders
    from mindspeed_vita.data.media.fast_resize import cut_tiles_fast, frame_tile_fast
    from mindspeed_vita.data.media.limits import DecodeSettings
    from mindspeed_vita.data.media.readers import read_frames
    from mindspeed_vita.data.media.video import VideoHeader, probe_video
    from mindspeed_vita.hf.frames import sample_file_frames
    from mindspeed_vita.hf.tiling import BACKGROUND, NORMALIZATIONS, choose_grid, cut_tiles, frame_tile, normalize

SIZES = ((640, 480), (480, 640), (640, 427), (500, 375), (640, 640), (800, 600), (1280, 720), (1700, 2200))
TILE = 448
MEAN, STD = (np.array(values, dtype=np.float32) for values in NORMALIZATIONS["imagenet"])


def photo(width: int, height: int) -> Image.Image:
    """Something with edges, gradients and grain, decoded from a JPEG as a photo is."""
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([128 + 100 * np.sin(x / 37 + y / 91), 128 + 100 * np.cos(x * y / 9e3), (x // 40 + y // 30) % 2 * 180 + 30], axis=-1)
    grain = np.random.default_rng(0).normal(0, 6, waves.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(waves + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")


def original_normalise(tile: Image.Image) -> np.ndarray:
    """float32[3, H, W]."""
    return ((np.asarray(tile, dtype=np.float32) / np.float32(255.0) - MEAN) / STD).transpose(2, 0, 1)


def original_tiles(image: Image.Image, grid: tuple[int, int]) -> np.ndarray:
    """float32[N, 3, H, W]."""
    columns, rows = grid
    stretched = image.resize((columns * TILE, rows * TILE), Image.Resampling.BICUBIC)
    corners = [(column * TILE, row * TILE) for row in range(rows) for column in range(columns)]
    tiles = [stretched.crop((left, top, left + TILE, top + TILE)) for left, top in corners]
    if len(tiles) > 1:
        tiles.insert(0, image.resize((TILE, TILE), Image.Resampling.BICUBIC))
    return np.stack([original_normalise(tile) for tile in tiles])


def original_frame(image: Image.Image) -> np.ndarray:
    """float32[3, H, W]."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), BACKGROUND)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return original_normalise(square.resize((TILE, TILE), Image.Resampling.BICUBIC))


def per_second(work: Callable[[], Any], least: float = 2.0) -> float:
    """Calls of work per CPU-second."""
    work()
    start, count = time.process_time(), 0
    while time.process_time() - start < least:
        work()
        count += 1
    return count / (time.process_time() - start)


def bench_tiles() -> None:
    """Pictures of several sizes, and their mix."""
    print("| picture | tiles | original / s | exact / s | | fast / s | | fast, most off |\n|---|---|---|---|---|---|---|---|")
    spent = np.zeros(3)
    for size in SIZES:
        image = photo(*size)
        grid = choose_grid(*size)
        count = grid[0] * grid[1] + (grid[0] * grid[1] > 1)
        exact = cut_tiles(image, grid)
        assert np.array_equal(normalize(exact), original_tiles(image, grid)), size
        fast = cut_tiles_fast(image, grid, tile_size=TILE, wanted=range(count))
        off = int(np.abs(fast.astype(int) - exact).max())
        ways: list[Callable[[], Any]] = [
            lambda image=image, grid=grid: original_tiles(image, grid),  # type: ignore[misc]
            lambda image=image, grid=grid: cut_tiles(image, grid),  # type: ignore[misc]
            lambda image=image, grid=grid, n=count: cut_tiles_fast(image, grid, tile_size=TILE, wanted=range(n)),  # type: ignore[misc]
        ]
        rates = np.array([per_second(way) for way in ways])
        spent += 1 / rates
        ratios = rates / rates[0]
        row = f"{rates[0]:.1f} | {rates[1]:.1f} | {ratios[1]:.2f} | {rates[2]:.1f} | {ratios[2]:.2f} | {off}"
        print(f"| {size[0]}x{size[1]} | {count} | {row} |", flush=True)
    print(f"| all, one of each | | {8 / spent[0]:.1f} | {8 / spent[1]:.1f} | {spent[0] / spent[1]:.2f} | {8 / spent[2]:.1f} "
          f"| {spent[0] / spent[2]:.2f} | |")  # fmt: skip


def bench_frames() -> None:
    """Decoded 720p frames to tiles."""
    image = photo(1280, 720)
    base = per_second(lambda: original_frame(image))
    print("\n| 720p frame to 448 | frames / s | |\n|---|---|---|")
    print(f"| original | {base:.0f} | 1 |")
    for name, way in (("exact", frame_tile), ("fast", frame_tile_fast)):
        rate = per_second(lambda way=way: way(image, tile_size=TILE))  # type: ignore[misc]
        print(f"| {name} | {rate:.0f} | {rate / base:.2f} |", flush=True)


def make_video(path: Path, seconds: int) -> None:
    """720p H.264 at 30 frames a second with key frames every 250 and B-frames, as encoders make by default."""
    import av

    y, x = np.mgrid[0:720, 0:1280]
    ground = np.stack([(3 * x + 5 * y) % 256, x // 5 % 256, y // 3 % 256], axis=-1).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "26", "threads": "1"}
        for number in range(30 * seconds):
            picture = np.roll(ground, (number * 3, number * 7), (0, 1))
            picture[40:240, number * 5 % 1080 : number * 5 % 1080 + 200] = 255 - number % 200
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def bench_video(path: str) -> None:
    """Frames spread over a video file."""
    count = probe_video(path).num_frames
    readers = ["decord", "pyav"]
    try:
        import decord  # noqa: F401
    except ImportError:
        readers = ["pyav"]
    print(f"\n| frames of {count:,} | " + " | ".join(f"{name} / s" for name in readers) + " | |")
    print("|---|" + "---|" * (len(readers) + 1))
    for wanted in (64, 600, 1024):
        numbers = sample_file_frames(count, 30, max_frames=wanted, max_fps=30)
        rates, first = [], None
        for reader in readers:
            start = time.process_time()
            sums = [int(np.asarray(image, dtype=np.uint8).sum(dtype=np.int64)) for image in read_frames(path, numbers, reader=reader)]
            rates.append(len(numbers) / (time.process_time() - start))
            first = first or sums
            assert sums == first, f"{reader} gives other frames"
        print(f"| {wanted} | " + " | ".join(f"{rate:.1f}" for rate in rates) + f" | {rates[-1] / rates[0]:.2f} |", flush=True)


def bench_film(path: str) -> None:
    """Peak memory of 4,096 tiles of one video, this process and the decoder's; the file's frames are repeated to that many."""
    header: VideoHeader = probe_video(path)
    numbers = [number * header.num_frames // 4096 for number in range(4096)]
    decoder = Decoder(replace(DecodeSettings(), seconds=3600))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    tiles = np.empty((4096, 3, TILE, TILE), dtype=np.uint8)
    decoder.video(os.path.basename(path), os.path.dirname(os.path.abspath(path)), header, numbers, tiles)
    child = _peak_of(decoder.pid)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    decoder.close()
    total = (own + child) / 2**20
    print(
        f"\n4,096 frames of one video: {total:.2f} GiB at most (this process {own / 2**20:.2f}, of which {before / 2**20:.2f} before; "
        f"decoder {child / 2**20:.2f}), {time.perf_counter() - start:.0f} s",
        flush=True,
    )


def _peak_of(pid: int | None) -> int:
    """Peak resident memory of a process, KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def bench_wait(folder: str) -> None:
    """Trains the tiny recipe with one loader process and says how long its steps waited."""
    import json

    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "VITA_OUT": folder, "DEVICE": "cpu"}
    subprocess.run([sys.executable, "examples/tiny/make_data.py", "--out", f"{folder}/data", "--size", "smoke"], cwd=root, check=True)
    print()
    for workers in (0, 1):
        run = f"{folder}/run{workers}"
        settings = ["train.steps=40", f"data.num_workers={workers}", f"checkpoint.directory={run}", "checkpoint.init_from="]
        command = [sys.executable, "-m", "mindspeed_vita.cli.main", "train", "examples/tiny/stage2.yaml", *settings]
        subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True)
        lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if "loss" in line][10:]  # the others are evaluations
        waited, all_seconds = (sum(step[key] for step in steps) for key in ("data_seconds", "seconds"))
        print(f"tiny recipe, {workers} loader processes: {waited / all_seconds:.1%} of the step time is waiting for data", flush=True)


def _cpu_seconds() -> float:
    """Of this process and of those that it started and that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak() -> float:
    """Most memory that this process has had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _open_data(folder: Path, entry: str, report: Any = None) -> Any:
    """The packs of a mixture of one entry, with a small tokenizer; tiles of 448 pixels."""
    import json

    from mindspeed_vita.config.recipe import DataConfig
    from mindspeed_vita.data.dataset import build_data
    from mindspeed_vita.data.tiny_tokenizer import train_tokenizer

    if not (folder / "tokenizer").exists():
        train_tokenizer(["What is in the picture? It is a cat and 12 dogs.\n"] * 8, 400, folder / "tokenizer")
    (folder / "mixture.yaml").write_text(json.dumps({"dataset": {"all": {"data_paths": [entry]}}}))
    settings = DataConfig(mixture=str(folder / "mixture.yaml"), tokenizer=str(folder / "tokenizer"), seq_length=16384)
    data = build_data(settings, tokens_per_tile=256, tile_size=TILE, vocab_size=1000, report=report)
    close_decoders()
    return data


def _talk(number: int, tag: str = "") -> list[dict[str, str]]:
    question = {"role": "user", "content": tag + f"What is number {number} of the pictures? " * 2}
    return [question, {"role": "assistant", "content": f"It is a cat and {number} dogs. " * 8}]


def bench_index(folder: Path, num_rows: int) -> None:
    """Rows that are half text, and half with a small picture of their own."""
    import json

    (folder / "pictures").mkdir()
    image = photo(96, 64)
    image.save(folder / "pictures" / "0.jpg")
    content = (folder / "pictures" / "0.jpg").read_bytes()
    with open(folder / "rows.jsonl", "w") as file:
        for number in range(num_rows):
            row: dict[str, Any] = {"messages": _talk(number, "<image>" if number % 2 else "")}
            if number % 2:
                (folder / "pictures" / f"{number}.jpg").write_bytes(content)
                row["images"] = [f"pictures/{number}.jpg"]
            file.write(json.dumps(row) + "\n")
    peaks: dict[int, float] = {}

    def seen(path: str, done: int, total: int) -> None:
        peaks.setdefault(10 * (10 * done // max(total, 1)), _peak())

    for name in ("made", "opened"):
        start, used = time.perf_counter(), _cpu_seconds()
        data = _open_data(folder, "rows.jsonl", seen)
        spent = _cpu_seconds() - used
        print(
            f"index of {len(data.index):,} rows {name}: {spent:.1f} CPU-s ({spent / num_rows * 1e6:.0f} for a million), "
            f"{time.perf_counter() - start:.1f} s, {_peak():.0f} MiB at most",
            flush=True,
        )
    print("peak MiB of this process: " + ", ".join(f"{peak:.0f} at {share}%" for share, peak in sorted(peaks.items())))


def bench_files(folder: Path, num_files: int) -> None:
    """A data set of many small files: started for the first time, and again."""
    import json

    (folder / "parts").mkdir()
    for number in range(num_files):
        rows = [json.dumps({"messages": _talk(number)}) + "\n"] * 20
        (folder / "parts" / f"{number}.jsonl").write_text("".join(rows))
    for name in ("first", "second"):
        start, used = time.perf_counter(), _cpu_seconds()
        data = _open_data(folder, "parts")
        print(
            f"{num_files:,} files, {name} start: {_cpu_seconds() - used:.1f} CPU-s, {time.perf_counter() - start:.1f} s "
            f"({len(data.index):,} rows)",
            flush=True,
        )


def _bench_members(folder: Path, peers: str) -> None:
    from members import bench_members

    file = io.BytesIO()
    photo(640, 480).save(file, "JPEG", quality=90)
    bench_members(folder, peers, file.getvalue())


def main() -> None:
    """Runs the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="tiles,frames,video,film,wait")
    parser.add_argument("--video", default="")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--files", type=int, default=5_000)
    parser.add_argument("--peers", default="", help="Python of an environment with other loaders; peers.py says how to make it")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    with tempfile.TemporaryDirectory() as folder:
        if "tiles" in parts:
            bench_tiles()
        if "frames" in parts:
            bench_frames()
        if {"video", "film"} & set(parts):
            video = arguments.video or f"{folder}/video.mp4"
            if not arguments.video:
                make_video(Path(video), arguments.seconds)
            if "video" in parts:
                bench_video(video)
            if "film" in parts:
                bench_film(video)
        if "wait" in parts:
            bench_wait(folder)
        for name, part in (
            ("index", lambda place: bench_index(place, arguments.rows)),
            ("files", lambda place: bench_files(place, arguments.files)),
            ("members", lambda place: _bench_members(place, arguments.peers)),
        ):
            if name in parts:
                place = Path(folder) / name
                place.mkdir()
                part(place)


if __name__ == "__main__":
    main()
