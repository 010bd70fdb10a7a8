"""What Megatron-Energon and mosaicml-streaming need to give the tiles of pictures, beyond bare decoding and tiling. Run by data.py.

Both are no dependency of this project. They live in an environment of their own, and data.py gets its Python:

    python -m venv /tmp/peers && /tmp/peers/bin/pip install torch==2.13.0
    /tmp/peers/bin/pip install torch==2.13.0 megatron-energon mosaicml-streaming pillow==VERSION    # the Pillow of .venv
    OMP_NUM_THREADS=1 python scripts/bench/data.py --parts members --peers /tmp/peers/bin/python

Each reads its own format, without worker processes and without shuffling: Energon a WebDataset shard, mosaicml-streaming an uncompressed
MDS shard on this disk. Decoding (Pillow) and tiling are this project's for all, and so are the pictures.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

try:
    import numpy as np
    from PIL import Image

    from mindspeed_vita.hf.tiling import choose_grid, cut_tiles
except ModuleNotFoundError as error:
    sys.exit(f"{sys.argv[0]}: {error.name} is missing in {sys.executable}; run: source .venv/bin/activate (scripts/setup_env.sh makes it)")

GRID = choose_grid(640, 480)
TILE = 448


def bare(content: bytes) -> np.ndarray:
    """What every loader has to do: uint8[13, 3, 448, 448] of a picture of 640x480 pixels."""
    return cut_tiles(Image.open(io.BytesIO(content)).convert("RGB"), GRID)


def beyond_bare(
    contents: list[bytes], ways: dict[str, Callable[[], Any]], clock: Callable[[], float] = time.process_time, rounds: int = 40
) -> tuple[float, dict[str, float]]:
    """CPU seconds of bare decoding, and what each way takes more for one picture.

    Each way takes turns with bare decoding, picture by picture, and the median of the differences counts: other work on the machine makes
    both slower alike.

    Args:
        contents: pictures; each decoded in turn.
        ways: by name; each gives one picture a call.
        clock: CPU seconds of all processes that take part.
        rounds: pictures of each way.
    """
    spent: dict[str, list[float]] = {name: [] for name in ways}
    base = []
    for number in range(-5, rounds):  # five to warm up
        content = contents[number % len(contents)]
        for name, way in ways.items():
            start = clock()
            bare(content)
            middle = clock()
            way()
            end = clock()
            if number >= 0:
                base.append(middle - start)
                spent[name].append((end - middle) - (middle - start))
    return float(np.median(base)), {name: float(np.median(values)) for name, values in spent.items()}


def write_shard(path: Path, contents: list[bytes]) -> None:
    """A WebDataset shard of pictures with captions."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as shard:
        for number, content in enumerate(contents):
            for suffix, data in (("jpg", content), ("txt", b"It is a cat.")):
                entry = tarfile.TarInfo(f"{number:06d}.{suffix}")
                entry.size = len(data)
                shard.addfile(entry, io.BytesIO(data))


def energon(folder: Path, contents: list[bytes]) -> Callable[[], Any]:
    """One picture a call from Megatron-Energon's loader."""
    from megatron.energon import CaptioningSample, DefaultTaskEncoder, SampleDecoder, WorkerConfig, get_loader, get_train_dataset
    from megatron.energon.flavors import BaseWebdatasetFactory

    folder.mkdir()
    write_shard(folder / "shard-0.tar", contents)
    BaseWebdatasetFactory.prepare_dataset(folder, ["shard-0.tar"], split_parts_ratio=[("train", 1.0)], workers=1)
    (folder / ".nv-meta" / "dataset.yaml").write_text(
        "__module__: megatron.energon\n__class__: CaptioningWebdataset\nfield_map:\n  image: jpg\n  caption: txt\n"
    )

    class Tiles(DefaultTaskEncoder):
        decoder = SampleDecoder(image_decode="pilrgb")

        def encode_sample(self, sample: CaptioningSample) -> Any:
            sample.image = cut_tiles(sample.image, GRID)
            return sample

        def batch(self, samples: list[Any]) -> Any:
            return samples

        def encode_batch(self, batch: Any) -> Any:
            return batch

    dataset = get_train_dataset(
        folder, batch_size=1, shuffle_buffer_size=None, max_samples_per_sequence=None, task_encoder=Tiles(),
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
    )  # fmt: skip
    samples = iter(get_loader(dataset))

    def one() -> None:
        (sample,) = next(samples)
        assert sample.image.shape[0] == GRID[0] * GRID[1] + 1

    return one


def stand_in_for_torchvision() -> None:
    """Lets mosaicml-streaming be imported where torchvision does not load, as its build for CUDA beside torch for CPU.

    Only its data sets for vision research use torchvision; none of them is used here.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name, held in (("", ()), (".datasets", ("VisionDataset",)), (".transforms", ()), (".transforms.functional", ("to_tensor",))):
            module = ModuleType(f"torchvision{name}")
            module.__spec__ = ModuleSpec(module.__name__, None)
            for attribute in held:
                setattr(module, attribute, object)
            sys.modules[module.__name__] = module


def streaming(folder: Path, contents: list[bytes]) -> Callable[[], Any]:
    """One picture a call from mosaicml-streaming's data set."""
    stand_in_for_torchvision()
    from streaming import MDSWriter, StreamingDataset

    with MDSWriter(out=str(folder), columns={"image": "bytes", "text": "str"}) as writer:
        for content in contents:
            writer.write({"image": content, "text": "It is a cat."})
    dataset = StreamingDataset(local=str(folder), batch_size=1, shuffle=False)

    def endless() -> Iterator[Any]:
        while True:
            yield from dataset

    samples = endless()

    def one() -> None:
        assert bare(next(samples)["image"]).shape[0] == GRID[0] * GRID[1] + 1

    return one


def main() -> None:
    """Reads the pictures of a folder and prints one line of JSON."""
    folder = Path(sys.argv[1])
    contents = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    ways = {"Megatron-Energon": energon(folder / "energon", contents), "mosaicml-streaming": streaming(folder / "mds", contents)}
    base, more = beyond_bare(contents, ways)
    print(json.dumps({"bare": base, "ways": more, "pillow": Image.__version__}))


if __name__ == "__main__":
    main()
