"""The process that decodes: reads requests on standard input, writes tiles on standard output, and may be killed at any moment.

Run as ``python -m mindspeed_vita.data.media.decoder_process SETTINGS`` by decoder.py; it imports neither torch nor megatron.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import astuple
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from mindspeed_vita.data.lifetime import live_no_longer_than
from mindspeed_vita.data.media.image import picture_tiles, probe_picture
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.media.paths import MediaError, resolve, split_frames
from mindspeed_vita.data.media.video import VideoHeader, is_uneven, iter_video_tiles, probe_video

TILE, SHARED, DONE, REFUSED = b"T", b"S", b"D", b"E"
"""What an answer is made of: tiles, each in the answer or in the shared memory, in order from the request's place; then the end with a JSON
value, or with [frame at fault or an empty text, reason]."""


def main() -> None:
    """Serves requests until standard input ends."""
    given = json.loads(sys.argv[1])
    settings = DecodeSettings(**{**given, "colour": tuple(given.get("colour", DecodeSettings.colour))})
    _restrict(settings.memory)
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit would overrule data.max_pixels, which is checked before a pixel is decoded
    # what libraries print must not reach the answers
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    arena = np.frombuffer(mmap.mmap(int(sys.argv[2]), 0), np.uint8) if len(sys.argv) > 2 else None
    for line in sys.stdin.buffer:
        _answer(json.loads(line), settings, arena, out)
        out.flush()


def _restrict(memory: int) -> None:
    """Bounds memory, forbids writing files and core dumps, and ends this process with its parent."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    live_no_longer_than()
    # A scheduler may send it to every process of a job. The run then finishes its step, and a picture that its decoder took along would
    # count as damaged for good. The run itself ends this process by SIGKILL.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _answer(request: dict[str, Any], settings: DecodeSettings, arena: np.ndarray | None, out: BinaryIO) -> None:
    work, place = _WORK[request.pop("kind")], request.pop("place", None)
    try:
        value = None
        for item in work(settings=settings, **request):
            if isinstance(item, np.ndarray) and arena is not None and place is not None:
                arena[place : place + item.nbytes].reshape(item.shape)[:] = item
                place += item.nbytes
                out.write(SHARED)
            elif isinstance(item, np.ndarray):
                out.write(TILE)
                out.write(np.ascontiguousarray(item).data)
            else:
                value = item
        _finish(out, DONE, value)
    except MediaError as error:
        _finish(out, REFUSED, [_frame_at_fault(request["path"], error.path), error.reason])
    except MemoryError:
        _finish(out, REFUSED, ["", f"needs more than {settings.memory:,} bytes to decode (data.decode_memory)"])


def _frame_at_fault(path: str, at_fault: str) -> str:
    """Which frame of a list of frames an error is about; empty where it is about the whole."""
    return at_fault if split_frames(path) and not split_frames(at_fault) else ""


def _finish(out: BinaryIO, tag: bytes, value: Any) -> None:
    text = json.dumps(value).encode()
    out.write(tag + len(text).to_bytes(4, "little") + text)


def _picture(path: str, root: str, tile_size: int, wanted: list[int], grid: list[int], settings: DecodeSettings) -> Iterator[Any]:
    columns, rows = grid
    yield from picture_tiles(resolve(path, root), (columns, rows), tile_size=tile_size, wanted=range(*wanted), settings=settings)


def _video(path: str, root: str, tile_size: int, header: list[Any], numbers: list[int], settings: DecodeSettings) -> Iterator[Any]:
    known = VideoHeader(*header)
    yield from iter_video_tiles(resolve(path, root), known, numbers, tile_size=tile_size, root=root, settings=settings)


def _probe_picture(path: str, root: str, settings: DecodeSettings) -> Iterator[Any]:
    yield list(probe_picture(resolve(path, root), settings))


def _probe_video(path: str, root: str, settings: DecodeSettings) -> Iterator[Any]:
    yield list(astuple(probe_video(path, root, settings)))


def _is_uneven(path: str, root: str, settings: DecodeSettings) -> Iterator[Any]:
    yield is_uneven(path, root, settings)


_WORK: dict[str, Callable[..., Iterator[Any]]] = {
    "picture": _picture,
    "video": _video,
    "probe_picture": _probe_picture,
    "probe_video": _probe_video,
    "is_uneven": _is_uneven,
}


if __name__ == "__main__":
    main()
