"""What goes in and out of modules in chosen steps, written by msprobe (package mindstudio-probe), so that two runs can be compared.

msprobe is imported only where a recipe asks for it. docs/guides/compare_runs.md shows how it is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mindspeed_vita.config import DebugConfig

FOLDER = "msprobe"
"""In the run's folder."""


class ModuleDump:
    """Switches msprobe on around steps. Does nothing where the recipe names no file.

    Make it before the model: msprobe wraps functions of torch when it is set up. It can be set up once per process.

    Args:
        config: the recipe's section.
        directory: the run's folder. The dump goes to `msprobe` inside it, unless the file has a dump_path.

    Raises:
        ValueError: the file cannot be read, msprobe is not installed, or msprobe refuses the file.
    """

    def __init__(self, config: DebugConfig, directory: Path) -> None:
        self._debugger = _open(Path(config.msprobe), directory / FOLDER) if config.msprobe else None

    @contextmanager
    def step(self, step: int, model: Any) -> Iterator[None]:
        """Around a step. What a step wrote until it failed is kept.

        Args:
            step: the run's own number, from 1. The file's list of steps has these numbers, also after a resume.
            model: this rank's model or its chunks, with or without wrappers. The dump names modules from the bare model on,
                so that the names are the same in all engines.
        """
        if self._debugger is None:
            yield
            return
        chunks = [bare(chunk) for chunk in (model if isinstance(model, list) else [model])]
        self._debugger.set_init_step(step)
        self._debugger.start(model=chunks if len(chunks) > 1 else chunks[0])
        try:
            yield
        finally:
            self._debugger.stop()
            self._debugger.step()


def bare(model: Any) -> Any:
    """The model below DDP and mixed precision."""
    while hasattr(model, "module"):
        model = model.module
    return model


def _open(path: Path, folder: Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"debug.msprobe={path}: {error.strerror}; name msprobe's config.json, or leave the key out") from None
    except ValueError as error:
        raise ValueError(f"debug.msprobe={path} is not JSON ({error}); docs/guides/compare_runs.md shows such a file") from None
    if not isinstance(content, dict):
        raise ValueError(f"debug.msprobe={path} holds {type(content).__name__}, expected an object with `task` and `level`")
    try:
        from msprobe.core.common.exceptions import CodedException
        from msprobe.pytorch import PrecisionDebugger
    except ModuleNotFoundError as error:
        raise ValueError(
            f"debug.msprobe={path} needs the package mindstudio-probe, but {error.name} is not installed; "
            "run `pip install mindstudio-probe`, or leave the key out"
        ) from None
    try:
        return PrecisionDebugger(config_path=str(path.resolve()), dump_path=content.get("dump_path") or str(folder.resolve()))
    except CodedException as error:
        raise ValueError(f"debug.msprobe={path} is refused by msprobe: {error}") from error
