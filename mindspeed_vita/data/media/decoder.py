"""Decoding in a child process with a hard deadline: a file that hangs, crashes or bombs the decoder costs that file, not the run.

DataLoader workers are daemonic and cannot start multiprocessing children, so the child is a plain program spoken to over pipes. It
serves one request at a time, lives on between them, and is started again after it was killed.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_vita.data.media.decoder_process import DONE, REFUSED, TILE
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.data.media.video import VideoHeader

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[3])
_START_SECONDS = 120.0
"""Time the child may take to start, on a host that is busy; not counted to a file's deadline."""
_LONGEST_TEXT = 1 << 20
_PROGRAM = "mindspeed_vita.data.media.decoder_process"


class Decoder:
    """One child process and the pipes to it. Not for several threads at once."""

    def __init__(self, settings: DecodeSettings) -> None:
        self.settings = settings
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()

    @property
    def pid(self) -> int | None:
        """Process id of the child, if one is running."""
        return self._child.pid if self._child else None

    def picture(self, path: str, root: str, grid: tuple[int, int], wanted: range, into: np.ndarray) -> None:
        """Fills into, uint8[len(wanted), 3, H, W], with tiles of a picture.

        Raises:
            MediaError: it cannot be decoded; what into holds is then undefined.
        """
        self._ask({"kind": "picture", "path": path, "root": root, "grid": grid, "wanted": [wanted.start, wanted.stop]}, into)

    def video(self, path: str, root: str, header: VideoHeader, numbers: list[int], into: np.ndarray) -> None:
        """Fills into, uint8[len(numbers), 3, H, W], with frames of a video.

        Raises:
            MediaError: it cannot be decoded; what into holds is then undefined.
        """
        known = [header.is_folder, header.num_frames, header.fps]
        self._ask({"kind": "video", "path": path, "root": root, "header": known, "numbers": numbers}, into)

    def probe_video(self, path: str, root: str) -> VideoHeader:
        """Header of a video.

        Raises:
            MediaError: it has none that can be read.
        """
        is_folder, num_frames, fps = self._ask({"kind": "probe_video", "path": path, "root": root}, None)
        return VideoHeader(is_folder, num_frames, fps)

    def close(self) -> None:
        """Ends the child."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None and child.stdout is not None
        if os.getpid() == self._owner:
            child.kill()
            child.wait()
        child.stdin.close()
        child.stdout.close()

    def _ask(self, request: dict[str, Any], into: np.ndarray | None) -> Any:
        child = self._start()
        assert child.stdin is not None
        if into is not None:
            request["tile_size"] = into.shape[-1]
        request["settings"] = asdict(self.settings)
        path, deadline = request["path"], time.monotonic() + self.settings.seconds
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            tag, value = self._receive(child, into, deadline)
        except TimeoutError:
            self.close()
            raise MediaError(path, f"took longer than {self.settings.seconds:g} seconds to decode (data.decode_seconds)") from None
        except (BrokenPipeError, EOFError):
            raise MediaError(path, f"{self._obituary(child)} while decoding it") from None
        except BaseException:
            self.close()  # a stop signal in the middle of an answer: what is left of it must not be taken for the next one
            raise
        if tag == REFUSED:
            raise MediaError(path, value)
        return value

    def _receive(self, child: subprocess.Popen[bytes], into: np.ndarray | None, deadline: float) -> tuple[bytes, Any]:
        assert child.stdout is not None
        pipe, place = child.stdout.fileno(), 0
        while True:
            tag = _read(pipe, bytearray(1), deadline)
            if bytes(tag) == TILE:
                assert into is not None and place < len(into), "more tiles than asked for"
                _read(pipe, memoryview(into[place]).cast("B"), deadline)
                place += 1
                continue
            assert bytes(tag) in (DONE, REFUSED), tag
            length = int.from_bytes(_read(pipe, bytearray(4), deadline), "little")
            assert length <= _LONGEST_TEXT, length
            value = json.loads(bytes(_read(pipe, bytearray(length), deadline)))
            assert bytes(tag) == REFUSED or into is None or place == len(into), (place, len(into))
            return bytes(tag), value

    def _obituary(self, child: subprocess.Popen[bytes]) -> str:
        try:
            status = child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            status = 0
        self.close()
        if status < 0:
            return f"the decoder was ended by {signal.Signals(-status).name}"
        return f"the decoder ended with status {status}"

    def _start(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self.close()
        paths = [_PACKAGE_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", _PROGRAM, str(self.settings.memory)]
        # its own session: Ctrl-C in the terminal is the run's to handle
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        self._owner = os.getpid()
        self._wait_until_up(self._child)
        return self._child

    def _wait_until_up(self, child: subprocess.Popen[bytes]) -> None:
        """A first answer, so that a file's deadline does not count the child's imports."""
        assert child.stdin is not None
        probe = {"kind": "probe_picture", "path": "", "root": os.sep, "settings": asdict(self.settings)}
        try:
            child.stdin.write(json.dumps(probe).encode() + b"\n")
            child.stdin.flush()
            self._receive(child, None, time.monotonic() + _START_SECONDS)
        except (BrokenPipeError, EOFError, TimeoutError):
            reason = self._obituary(child) if child.poll() is not None else f"it did not answer within {_START_SECONDS:g} seconds"
            self.close()
            raise RuntimeError(
                f"the decoder process cannot be started: {reason}; run {sys.executable} -m {_PROGRAM} {self.settings.memory} "
                "to see why"
            ) from None


def _read(pipe: int, into: Any, deadline: float) -> Any:
    """Fills a buffer from a pipe.

    Raises:
        TimeoutError: the deadline passed.
        EOFError: the other side is gone.
    """
    view, done = memoryview(into), 0
    while done < len(view):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            raise TimeoutError
        count = os.readv(pipe, [view[done:]])
        if not count:
            raise EOFError
        done += count
    return into


_decoders: dict[tuple[int, DecodeSettings], Decoder] = {}


def get_decoder(settings: DecodeSettings) -> Decoder:
    """This process's decoder with these settings; a worker forked from it gets its own."""
    key = (os.getpid(), settings)
    if key not in _decoders:
        _decoders[key] = Decoder(settings)
    return _decoders[key]


@atexit.register
def close_decoders() -> None:
    """Ends this process's decoders."""
    for (owner, _), decoder in list(_decoders.items()):
        if owner == os.getpid():
            decoder.close()
