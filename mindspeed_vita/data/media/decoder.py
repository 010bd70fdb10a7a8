"""Decoding in a child process with a hard deadline: a file that hangs, crashes or bombs the decoder costs that file, not the run.

DataLoader workers are daemonic and cannot start multiprocessing children, so the child is a plain program spoken to over pipes. It
serves one request at a time, lives on between them, and is started again after it was killed.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
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
_AHEAD = 16 << 10
"""Bytes of requests that wait in the pipe, which holds four times as much: writing them must not wait for the child."""
_PIPE = 1 << 20
"""Bytes of tiles that may wait to be read."""
_SET_PIPE_SIZE = 1031
"""fcntl.F_SETPIPE_SZ, which Python 3.9 and later name on Linux only."""
_PROGRAM = "mindspeed_vita.data.media.decoder_process"


@dataclass(frozen=True)
class Job:
    """One request and where its tiles go."""

    request: dict[str, Any]
    into: np.ndarray | None
    """uint8[n, 3, H, W], filled by the answer; what it holds is undefined where that fails."""

    @classmethod
    def picture(cls, path: str, root: str, grid: tuple[int, int], wanted: range, into: np.ndarray) -> Job:
        """Tiles of a picture: len(wanted) of them."""
        tiles = {"grid": grid, "wanted": [wanted.start, wanted.stop], "tile_size": into.shape[-1]}
        return cls({"kind": "picture", "path": path, "root": root, **tiles}, into)

    @classmethod
    def video(cls, path: str, root: str, header: VideoHeader, numbers: list[int], into: np.ndarray) -> Job:
        """Frames of a video: len(numbers) of them."""
        known = [header.is_folder, header.num_frames, header.fps]
        return cls(
            {"kind": "video", "path": path, "root": root, "header": known, "numbers": numbers, "tile_size": into.shape[-1]}, into
        )


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

    def run(self, jobs: Sequence[Job]) -> list[MediaError | None]:
        """Does jobs in their order; the child works on one while its next ones wait in the pipe.

        Returns:
            Why each job failed, None where it did not.
        """
        return [outcome if isinstance(outcome, MediaError) else None for outcome in self._outcomes(jobs)]

    def picture(self, path: str, root: str, grid: tuple[int, int], wanted: range, into: np.ndarray) -> None:
        """Fills into, uint8[len(wanted), 3, H, W], with tiles of a picture.

        Raises:
            MediaError: it cannot be decoded; what into holds is then undefined.
        """
        self._one(Job.picture(path, root, grid, wanted, into))

    def video(self, path: str, root: str, header: VideoHeader, numbers: list[int], into: np.ndarray) -> None:
        """Fills into, uint8[len(numbers), 3, H, W], with frames of a video.

        Raises:
            MediaError: it cannot be decoded; what into holds is then undefined.
        """
        self._one(Job.video(path, root, header, numbers, into))

    def probe_video(self, path: str, root: str) -> VideoHeader:
        """Header of a video.

        Raises:
            MediaError: it has none that can be read.
        """
        is_folder, num_frames, fps = self._one(Job({"kind": "probe_video", "path": path, "root": root}, None))
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

    def _one(self, job: Job) -> Any:
        (outcome,) = self._outcomes([job])
        if isinstance(outcome, MediaError):
            raise outcome
        return outcome

    def _outcomes(self, jobs: Sequence[Job]) -> list[Any]:
        """For each job its answer, or the MediaError that it failed with. What ends the child costs the job it was at, no other."""
        outcomes: list[Any] = []
        lines = [json.dumps(job.request).encode() + b"\n" for job in jobs]
        sent = 0
        while len(outcomes) < len(jobs):
            done = len(outcomes)
            job, path = jobs[done], jobs[done].request["path"]
            if self._child is None or self._child.poll() is not None:
                sent = done
            child = self._start()
            try:
                sent = self._send(child, lines, done, sent)
                outcomes.append(self._receive(child, job.into, time.monotonic() + self.settings.seconds, path))
            except TimeoutError:
                self.close()
                reason = f"took longer than {self.settings.seconds:g} seconds to decode (data.decode_seconds)"
                outcomes.append(MediaError(path, reason))
            except (BrokenPipeError, EOFError):
                outcomes.append(MediaError(path, f"{self._obituary(child)} while decoding it"))
            except BaseException:
                self.close()  # a stop signal in the middle of an answer: what is left of it must not be taken for the next one
                raise
        return outcomes

    def _send(self, child: subprocess.Popen[bytes], lines: list[bytes], done: int, sent: int) -> int:
        """Sends the next job, and those after it that the pipe surely has room for; returns how many are sent."""
        assert child.stdin is not None
        waiting = sum(map(len, lines[done:sent]))
        first = sent
        while sent < len(lines) and (sent == done or waiting + len(lines[sent]) <= _AHEAD):
            waiting += len(lines[sent])
            sent += 1
        if sent > first:
            child.stdin.write(b"".join(lines[first:sent]))
            child.stdin.flush()
        return sent

    def _receive(self, child: subprocess.Popen[bytes], into: np.ndarray | None, deadline: float, path: str) -> Any:
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
            return MediaError(path, value) if bytes(tag) == REFUSED else value

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
        command = [sys.executable, "-m", _PROGRAM, json.dumps(asdict(self.settings))]
        # its own session: Ctrl-C in the terminal is the run's to handle
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        self._owner = os.getpid()
        assert self._child.stdout is not None
        with suppress(OSError):  # a limit of the host: then it stays as it is
            fcntl.fcntl(self._child.stdout.fileno(), _SET_PIPE_SIZE, _PIPE)
        self._wait_until_up(self._child)
        return self._child

    def _wait_until_up(self, child: subprocess.Popen[bytes]) -> None:
        """A first answer, so that a file's deadline does not count the child's imports."""
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps({"kind": "probe_picture", "path": "", "root": os.sep}).encode() + b"\n")
            child.stdin.flush()
            self._receive(child, None, time.monotonic() + _START_SECONDS, "")
        except (BrokenPipeError, EOFError, TimeoutError):
            reason = self._obituary(child) if child.poll() is not None else f"it did not answer within {_START_SECONDS:g} seconds"
            self.close()
            raise RuntimeError(
                f"the decoder process cannot be started: {reason}; run {sys.executable} -m {_PROGRAM} '{{}}' to see why"
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
