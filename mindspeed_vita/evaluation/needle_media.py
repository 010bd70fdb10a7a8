"""The files that a needle test asks about, for the time of the asking: each frame is drawn once, a film is a folder of links to them.

The folder must be on a file system that all processes see.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mindspeed_vita.evaluation.needle_cases import Case
from mindspeed_vita.evaluation.needle_frames import Frame, render
from mindspeed_vita.inference.request import Request, ask


class NeedleMedia:
    """Draws frames into a folder.

    Args:
        folder: made if it is missing; whoever gives it removes it.
        side: pixels of a frame.
    """

    def __init__(self, folder: Path, side: int) -> None:
        self.folder, self.side = folder.absolute(), side
        self._drawn: set[str] = set()

    def __len__(self) -> int:
        """Frames that were drawn."""
        return len(self._drawn)

    def request(self, case: Case, media: str) -> Request:
        """The case as a request; its files are there until `remove`."""
        files = self.draw(case.frames())
        if media == "pictures":
            return ask(case.question, images=[str(file) for file in files])
        return ask(case.question, videos=[str(self._film(case, files))])

    def draw(self, frames: Sequence[Frame]) -> list[Path]:
        """The files of frames, in order."""
        folder = self.folder / "frames"
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for frame in frames:
            file = folder / f"{frame.name}.png"
            if frame.name not in self._drawn:
                Image.fromarray(render(frame, self.side)).save(file)
                self._drawn.add(frame.name)
            files.append(file)
        return files

    def _film(self, case: Case, files: Sequence[Path]) -> Path:
        folder = self.folder / case.key
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        for number, file in enumerate(files):
            (folder / f"{number:06d}.png").symlink_to(file)
        return folder

    def remove(self, case: Case) -> None:
        """Takes the film of a case away. Frames stay: other cases show them too."""
        shutil.rmtree(self.folder / case.key, ignore_errors=True)
