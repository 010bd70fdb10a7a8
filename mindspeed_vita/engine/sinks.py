"""Where the lines of metrics.jsonl go as well: TensorBoard, an OpenMetrics file, services."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Protocol

from mindspeed_vita.config import Recipe
from mindspeed_vita.engine.open_metrics import OpenMetrics
from mindspeed_vita.engine.trackers import Tracker
from mindspeed_vita.files.writing import naming


class Sink(Protocol):
    """Takes lines."""

    def begin(self, evaluation: Mapping[str, Any]) -> None:
        """A run that was evaluated before goes on: its newest line of the held-out loss, which this sink had from an earlier start."""

    def write(self, entry: Mapping[str, Any], *, evaluation: bool) -> None:
        """Takes one line; `evaluation`: it is of the held-out loss, and not of a training step."""

    def close(self) -> None:
        """No line follows."""


class TensorBoard:
    """Events below the folder of the run.

    Args:
        folder: of the events.
        step: step that the run continues from; events of later ones are hidden.
        writer: torch's class of that name.
    """

    def __init__(self, folder: Path, step: int, writer: Any) -> None:
        self._folder = folder
        with naming(folder):
            self._writer = writer(str(folder), purge_step=step + 1)

    def begin(self, evaluation: Mapping[str, Any]) -> None:
        """Nothing: the events have it."""

    def write(self, entry: Mapping[str, Any], *, evaluation: bool) -> None:
        """Adds the numbers of a line."""
        with naming(self._folder):
            for name, value in entry.items():
                if name != "step" and value is not None and not isinstance(value, str):
                    self._writer.add_scalar(name, value, entry["step"])

    def close(self) -> None:
        """Writes what is left."""
        with naming(self._folder):
            self._writer.close()


def open_sinks(recipe: Recipe, directory: Path, *, step: int) -> list[Sink]:
    """Those that a recipe asks for, on the rank that writes. TensorBoard is left out where it is not installed.

    Args:
        recipe: the run.
        directory: its folder, which exists.
        step: step that it continues from.

    Raises:
        ValueError: a service cannot be used.
    """
    told, sinks = recipe.logging, list[Sink]()
    writer = _event_writer() if told.tensorboard else None
    if writer is not None:
        sinks.append(TensorBoard(directory / "tensorboard", step, writer))
    if told.openmetrics:
        sinks.append(OpenMetrics(directory / "metrics.prom", recipe.name))
    for service, project in (("wandb", told.wandb), ("swanlab", told.swanlab)):
        if project:
            sinks.append(Tracker(service, recipe, project, directory))
    return sinks


def _event_writer() -> Optional[Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter
