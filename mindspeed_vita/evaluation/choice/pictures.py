"""Pictures that travel inside a row: base64 of a TSV, bytes of parquet. They are written to files, since requests name files."""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path
from typing import Any

LONGEST_REFERENCE = 64
"""A cell of at most so many characters is no picture in base64; it names the row that holds the picture."""


class PictureFolder:
    """Files for pictures, named by their content.

    Args:
        folder: made when the first picture comes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of_base64(self, text: str) -> str:
        """Path of the picture.

        Raises:
            ValueError: the text is no base64.
        """
        try:
            return self.of_bytes(base64.b64decode(text, validate=True))
        except binascii.Error as error:
            raise ValueError(f"is no base64 ({error})") from error

    def of_bytes(self, content: bytes) -> str:
        """Path of the picture. Whether it can be decoded shows when it is."""
        path = self.folder / f"{hashlib.sha256(content).hexdigest()[:32]}.img"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_bytes(content)
            partial.replace(path)
        return str(path)

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
