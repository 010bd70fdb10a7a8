"""Pictures without a file get one, also where several processes have the same picture."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from PIL import Image

from mindspeed_vita.evaluation.pictures import PictureFolder

CONTENT = b"bytes of a picture"


def test_two_processes_may_write_the_same_picture_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one begins and ends while the first one has written and not yet published."""
    write, begun = Path.write_bytes, []

    def interrupted(path: Path, content: bytes) -> int:
        written = write(path, content)
        if not begun:
            begun.append(path)
            PictureFolder(tmp_path).of_bytes(content)
        return written

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    path = PictureFolder(tmp_path).of_bytes(CONTENT)
    assert begun and Path(path).read_bytes() == CONTENT and list(tmp_path.iterdir()) == [Path(path)]


def test_what_is_written_half_appears_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (3, 2), (9, 8, 7))
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", lambda self, path, *rest, **options: Path(path).write_bytes(b"half") and 1 / 0)
        with pytest.raises(ZeroDivisionError):
            PictureFolder(tmp_path).of_pil(picture)
    assert not list(tmp_path.iterdir())
    path = PictureFolder(tmp_path).of_pil(picture)
    assert Image.open(path).tobytes() == picture.tobytes() and PictureFolder(tmp_path).of_pil(picture.copy()) == path


def test_the_ways_of_giving_one_picture_give_one_file(tmp_path: Path) -> None:
    folder = PictureFolder(tmp_path / "made")
    path = folder.of_bytes(CONTENT)
    assert folder.of_base64(base64.b64encode(CONTENT).decode()) == folder.of_struct({"bytes": CONTENT}, tmp_path) == path
    assert folder.of_struct({"bytes": None, "path": "a.png"}, tmp_path) == str(tmp_path / "a.png")
    with pytest.raises(ValueError, match="is no base64"):
        folder.of_base64("?")
    with pytest.raises(ValueError, match="neither the bytes of a picture nor a path"):
        folder.of_struct({}, tmp_path)
