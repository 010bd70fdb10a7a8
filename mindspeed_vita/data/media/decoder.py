"""Decoding in a child process with a hard deadline: a file that hangs, crashes or bombs the decoder costs that file, not the run.

DataLoader workers are daemonic and cannot start multiprocessing children, so the child is a plain program spoken to over pipes. It
serves one request at a time, lives on between them, and is started again after it was killed.
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_vita.data.at_work import note
from mindspeed_vita.data.media.arena import SIZE, Arena, memory_to_share
from mindspeed_vita.data.media.decoder_process import DONE, REFUSED, SHARED, TILE
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.data.media.pipes import read_into, write_all
from mindspeed_vita.data.media.stored_media import fetch_media
from mindspeed_vita.data.media.video import VideoHeader

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[3])
_START_SECONDS = 120.0
"""Time the child may take to start, on a host that is busy; not counted to a file's deadline."""
_LONGEST_TEXT = 1 << 20
_AHEAD = 16 << 10
"""Most bytes of requests that wait in the pipe, and a quarter of it at most: it has 64 KiB, less where the host's pipes are many."""
_PLACE = 32
"""Bytes that a request grows by, at most, when its place in the arena is added, with the line feed."""
_PIPE = 256 << 10
"""Bytes of tiles that may wait to be read. What all pipes of a user may hold is limited too, usually to 64 MiB."""
_SET_PIPE_SIZE, _GET_PIPE_SIZE = 1031, 1032
"""fcntl.F_SETPIPE_SZ and F_GETPIPE_SZ, which Python names on Linux only."""
_CLOSE_SECONDS = 5.0
"""How long a killed child may take to end: one in an uninterruptible read of a dead file system is left behind."""
_PROGRAM = "mindspeed_vita.data.media.decoder_process"


@dataclass(frozen=True)
class Job:
    """One request and where its tiles go."""

    request: dict[str, Any]
    into: np.ndarray | None
    """uint8[n, 3, H, W], filled by the answer; what it holds is undefined where that fails."""

    @property
    def num_frames(self) -> int:
        """Frames of a video that it asks for; 0 for all else."""
        return len(self.request["numbers"]) if self.request["kind"] == "video" else 0

    @classmethod
    def picture(cls, path: str, root: str, grid: tuple[int, int], wanted: range, into: np.ndarray) -> Job:
        """Tiles of a picture: len(wanted) of them."""
        tiles = {"grid": grid, "wanted": [wanted.start, wanted.stop], "tile_size": into.shape[-1]}
        return cls({"kind": "picture", "path": path, "root": root, **tiles}, into)

    @classmethod
    def video(cls, path: str, root: str, header: VideoHeader, numbers: list[int], into: np.ndarray) -> Job:
        """Frames of a video: len(numbers) of them."""
        known = list(astuple(header))
        return cls(
            {"kind": "video", "path": path, "root": root, "header": known, "numbers": numbers, "tile_size": into.shape[-1]}, into
        )

    @classmethod
    def header(cls, path: str, root: str, is_video: bool) -> Job:
        """Header of a picture or a video."""
        return cls({"kind": "probe_video" if is_video else "probe_picture", "path": path, "root": root}, None)


class Decoder:
    """One child process and the pipes to it. Not for several threads at once."""

    def __init__(self, settings: DecodeSettings) -> None:
        self.settings = settings
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._ahead = _AHEAD
        self._arena: Arena | None = None
        self._places: deque[int | None] = deque()
        """Where in the arena the tiles of each job that was sent go; None: through the pipe."""

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

    def headers(self, jobs: Sequence[Job]) -> list[tuple[int, int] | VideoHeader | MediaError]:
        """For each Job.header (width, height) of the picture, the header of the video, or why there is none."""

        def header(job: Job, found: Any) -> tuple[int, int] | VideoHeader | MediaError:
            if isinstance(found, MediaError):
                return found
            return VideoHeader(*found) if job.request["kind"] == "probe_video" else (found[0], found[1])

        return [header(job, found) for job, found in zip(jobs, self._outcomes(jobs), strict=True)]

    def probe_video(self, path: str, root: str) -> VideoHeader:
        """Header of a video.

        Raises:
            MediaError: it has none that can be read.
        """
        return VideoHeader(*self._one(Job.header(path, root, True)))

    def is_uneven(self, path: str, root: str) -> bool:
        """Whether the frames of a video file are spaced unevenly in time.

        Raises:
            MediaError: it cannot be read.
        """
        return bool(self._one(Job({"kind": "is_uneven", "path": path, "root": root}, None)))

    def probe_picture(self, path: str, root: str) -> tuple[int, int]:
        """(width, height) of a picture.

        Raises:
            MediaError: it has no header that can be read.
        """
        width, height = self._one(Job.header(path, root, False))
        return width, height

    def close(self) -> None:
        """Ends the child."""
        child, self._child = self._child, None
        self._arena = None  # the next child has its own: whatever becomes of this one, it cannot write there
        self._places.clear()
        if child is None:
            return
        assert child.stdin is not None and child.stdout is not None
        if os.getpid() == self._owner:
            child.kill()
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=_CLOSE_SECONDS)
        child.stdin.close()
        child.stdout.close()

    def _one(self, job: Job) -> Any:
        (outcome,) = self._outcomes([job])
        if isinstance(outcome, MediaError):
            raise outcome
        return outcome

    def _outcomes(self, jobs: Sequence[Job]) -> list[Any]:
        """For each job its answer, or the MediaError that it failed with. Media of object stores are fetched first."""
        ready = fetch_media(jobs, self.settings)
        answers = iter(self._answers([job for job in ready if isinstance(job, Job)]))
        return [next(answers) if isinstance(job, Job) else job for job in ready]

    def _answers(self, jobs: Sequence[Job]) -> list[Any]:
        """The same for media on this host. What ends the child costs the job it was at, no other.

        A job that the child died at is done once more, by a new child: something else may have killed it, and the job's sample would
        stay masked for the rest of the run.
        """
        outcomes: list[Any] = []
        died_at = -1
        # the child keeps the working directory that it was started in
        requests = [{**job.request, "root": os.path.abspath(job.request["root"])} for job in jobs]
        lines = [json.dumps(request).encode() for request in requests]
        sizes = [0 if job.into is None else job.into.nbytes for job in jobs]
        sent = 0
        while len(outcomes) < len(jobs):
            done = len(outcomes)
            job, path, seconds = jobs[done], jobs[done].request["path"], self.settings.deadline(jobs[done].num_frames)
            if self._child is None or self._child.poll() is not None:
                sent = done
            child = self._start()
            try:
                note(path)
                deadline = time.monotonic() + seconds
                sent = self._send(child, lines, sizes, done, sent, deadline)
                outcomes.append(self._receive(child, job.into, deadline, path))
            except TimeoutError:
                self.close()
                outcomes.append(MediaError(path, f"took longer than {seconds:g} seconds to decode (data.decode_seconds)"))
            except (BrokenPipeError, EOFError):
                reason = self._obituary(child)
                if died_at == done:
                    outcomes.append(MediaError(path, f"{reason} while decoding it, twice"))
                died_at = done
            except BaseException:
                self.close()  # a stop signal in the middle of an answer: what is left of it must not be taken for the next one
                raise
        return outcomes

    def _send(
        self, child: subprocess.Popen[bytes], lines: list[bytes], sizes: list[int], done: int, sent: int, deadline: float
    ) -> int:
        """Sends the next job, and those after it that pipe and arena surely have room for; returns how many are sent."""
        assert child.stdin is not None
        waiting = sum(len(line) + _PLACE for line in lines[done:sent])
        content = b""
        while sent < len(lines) and (sent == done or waiting + len(lines[sent]) + _PLACE <= self._ahead):
            place = None
            if self._arena is not None and 0 < sizes[sent] <= SIZE:
                place = self._arena.take(sizes[sent])
                if place is None:
                    break
            self._places.append(place)
            waiting += len(lines[sent]) + _PLACE
            content += lines[sent] if place is None else lines[sent][:-1] + b', "place": %d}' % place
            content += b"\n"
            sent += 1
        if content:
            write_all(child.stdin.fileno(), content, deadline)
        return sent

    def _receive(self, child: subprocess.Popen[bytes], into: np.ndarray | None, deadline: float, path: str) -> Any:
        assert child.stdout is not None
        pipe, place = child.stdout.fileno(), 0
        while True:
            tag = read_into(pipe, bytearray(1), deadline)
            if bytes(tag) == TILE:
                assert into is not None and place < len(into), "more tiles than asked for"
                read_into(pipe, memoryview(into[place]).cast("B"), deadline)
                place += 1
                continue
            if bytes(tag) == SHARED:
                start = self._places[0]
                assert into is not None and place < len(into) and self._arena is not None and start is not None
                self._arena.fetch(start + place * into[place].nbytes, into[place])
                place += 1
                continue
            assert bytes(tag) in (DONE, REFUSED), tag
            length = int.from_bytes(read_into(pipe, bytearray(4), deadline), "little")
            assert length <= _LONGEST_TEXT, length
            value = json.loads(bytes(read_into(pipe, bytearray(length), deadline)))
            assert bytes(tag) == REFUSED or into is None or place == len(into), (place, len(into))
            if self._places.popleft() is not None:
                assert self._arena is not None
                self._arena.free()
            return MediaError(value[0] or path, value[1]) if bytes(tag) == REFUSED else value

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
        memory = memory_to_share()
        shared = () if memory is None else (memory,)
        try:
            # its own session: Ctrl-C in the terminal is the run's to handle
            self._child = subprocess.Popen(
                [*command, *map(str, shared)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
                pass_fds=shared,
            )
            self._arena = None if memory is None else Arena(memory)
        finally:
            for descriptor in shared:
                os.close(descriptor)
        self._owner = os.getpid()
        assert self._child.stdin is not None and self._child.stdout is not None
        with suppress(OSError):  # a limit of the host: then it stays as it is
            fcntl.fcntl(self._child.stdout.fileno(), _SET_PIPE_SIZE, _PIPE)
        os.set_blocking(self._child.stdin.fileno(), False)
        self._ahead = min(_AHEAD, fcntl.fcntl(self._child.stdin.fileno(), _GET_PIPE_SIZE) // 4)
        self._wait_until_up(self._child)
        return self._child

    def _wait_until_up(self, child: subprocess.Popen[bytes]) -> None:
        """A first answer, so that a file's deadline does not count the child's imports."""
        line = json.dumps({"kind": "probe_picture", "path": "", "root": os.sep}).encode()
        deadline = time.monotonic() + _START_SECONDS
        try:
            self._send(child, [line], [0], 0, 0, deadline)
            self._receive(child, None, deadline, "")
        except (BrokenPipeError, EOFError, TimeoutError):
            reason = self._obituary(child) if child.poll() is not None else f"it did not answer within {_START_SECONDS:g} seconds"
            self.close()
            raise RuntimeError(
                f"the decoder process cannot be started: {reason}; run {sys.executable} -m {_PROGRAM} '{{}}' to see why"
            ) from None


_decoders: dict[tuple[int, DecodeSettings, str], Decoder] = {}


def get_decoder(settings: DecodeSettings, name: str = "") -> Decoder:
    """This process's decoder with these settings; a worker forked from it gets its own.

    Args:
        settings: of decoding.
        name: tells decoders apart that several threads use at the same time.
    """
    key = (os.getpid(), settings, name)
    if key not in _decoders:
        _decoders[key] = Decoder(settings)
    return _decoders[key]


@atexit.register
def close_decoders() -> None:
    """Ends this process's decoders."""
    for (owner, _, _), decoder in list(_decoders.items()):
        if owner == os.getpid():
            decoder.close()
