"""Weights & Biases and SwanLab, where a recipe names a project there: both take the lines of metrics.jsonl."""

from __future__ import annotations

import importlib
import secrets
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindspeed_vita.config import Recipe, recipe_to_dict
from mindspeed_vita.files.publish import whole_file

_LONGEST_END = 120.0
"""Seconds that a service has for the end of a run."""
IDENTITY = "tracked_run.txt"
"""File of a run's folder with the name that the services know it by, so that a run which continues is the same one there."""


class Tracker:
    """One service.

    Args:
        service: "wandb" or "swanlab", which is also the package's name and the recipe's key below logging.
        recipe: the run, whose settings the service shows.
        project: of the service.
        directory: folder of the run; files of the service go there too.

    Raises:
        ValueError: the package is not installed, or the service does not start.
    """

    def __init__(self, service: str, recipe: Recipe, project: str, directory: Path) -> None:
        key = f"logging.{service}={project}"
        try:
            self._package: Any = importlib.import_module(service)
        except ImportError as error:
            raise ValueError(f"{key}: the package {service} is not installed; pip install {service}, or leave the key empty") from error
        folder = {"wandb": {"dir": str(directory)}, "swanlab": {"log_dir": str(directory / "swanlab")}}[service]
        told = {"project": project, "name": recipe.name, "id": identity(directory), "resume": "allow", "config": recipe_to_dict(recipe)}
        try:
            self._run = self._package.init(**told, **folder)
        except Exception as error:  # each release has its own kinds
            offline = f"{service.upper()}_MODE=offline keeps everything on this machine"
            raise ValueError(f"{key}: {service} does not start ({error}); log in with `{service} login`, or {offline}") from error
        self._by_own_step = service == "wandb"
        if self._by_own_step:
            # the service counts calls by itself, and refuses to go back where steps are trained again
            self._run.define_metric("*", step_metric="step")
        self._failed = False

    def begin(self, evaluation: Mapping[str, Any]) -> None:
        """Nothing: the service has it."""

    def write(self, entry: Mapping[str, Any], *, evaluation: bool) -> None:
        """Passes the numbers of a line on. Where the service fails, the run goes on without it.

        Args:
            entry: line of metrics.jsonl.
            evaluation: it is of the held-out loss, and not of a training step; the services tell them by their names.
        """
        numbers = {key: value for key, value in entry.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
        if self._failed:
            return
        try:
            if self._by_own_step:
                self._run.log(numbers)
            else:
                self._run.log({key: value for key, value in numbers.items() if key != "step"}, step=entry["step"])
        except Exception as error:  # noqa: BLE001 - each release has its own kinds; the file has the numbers, and the run is worth more
            self._failed = True
            name = self._package.__name__
            lost = f"it gets no numbers from step {entry['step']} on, until the run starts again; metrics.jsonl has all of them"
            print(f"vita: logging.{name}: the service failed ({type(error).__name__}: {error}); {lost}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Sends what is left, and says that the run is over for now. A service that does not answer is not waited for any longer."""
        ending = threading.Thread(target=self._end, daemon=True)
        ending.start()
        ending.join(_LONGEST_END)
        if ending.is_alive():
            late = f"vita: {self._package.__name__} did not take the last numbers in {_LONGEST_END:.0f} s; its own sync command sends them"
            print(late, file=sys.stderr)

    def _end(self) -> None:
        try:
            self._run.finish()
        except Exception as error:  # noqa: BLE001 - as above
            name = self._package.__name__
            print(f"vita: logging.{name}: the service did not end in order ({type(error).__name__}: {error})", file=sys.stderr, flush=True)


def identity(directory: Path) -> str:
    """The name of a folder's run, made when it is asked for first. 16 hexadecimal digits."""
    path = directory / IDENTITY
    if not path.is_file():
        with whole_file(path) as temporary:
            temporary.write_text(f"{secrets.token_hex(8)}\n")
    return path.read_text().strip()
