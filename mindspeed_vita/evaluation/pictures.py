"""Pictures that have no file of their own: in an evaluator's memory, or inside a benchmark's row. Requests name files, so they get one."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mindspeed_vita.files.publish import whole_file

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")


class PictureFolder:
    """Files for pictures, named by their content. Several processes may write the same picture at a time.

    Args:
        folder: made when the first picture comes; every rank must see it under the same path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of_pil(self, picture: Any) -> str:
        """Path of a PIL picture, stored without loss."""
        if picture.mode not in _PNG_MODES:
            picture = picture.convert("RGB")
        content = f"{picture.mode} {picture.size} {picture.getpalette()}".encode() + picture.tobytes()
        return self._file(content, ".png", lambda path: picture.save(path, "PNG", compress_level=1))

    def of_bytes(self, content: bytes) -> str:
        """Path of a picture given as the bytes of its file. Whether it can be decoded shows when it is."""
        return self._file(content, ".img", lambda path: path.write_bytes(content))

    def of_base64(self, text: str) -> str:
        """Path of a picture given in base64.

        Raises:
            ValueError: the text is no base64.
        """
        try:
            return self.of_bytes(base64.b64decode(text, validate=True))
        except binascii.Error as error:
            raise ValueError(f"is no base64 ({error})") from error

    def of_struct(self, value: Any, media: Path) -> str:
        """Path of a picture as Hugging Face's parquet has it: {"bytes": ..., "path": ...}.

        Raises:
            ValueError: it holds neither bytes nor a path.
        """
        if isinstance(value, dict) and value.get("bytes"):
            return self.of_bytes(value["bytes"])
        path = value.get("path") if isinstance(value, dict) else value
        if not isinstance(path, str) or not path:
            raise ValueError("holds neither the bytes of a picture nor a path")
        return str(media / path)

    def _file(self, content: bytes, suffix: str, write: Callable[[Path], Any]) -> str:
        path = self.folder / f"{hashlib.sha256(content).hexdigest()[:32]}{suffix}"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as temporary:
                write(temporary)
        return str(path)
