"""The table of docs/guides/watch_a_run.md: which keys each engine writes. Runs are compared with it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Collection

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from mindspeed_vita.cli.main import main
from mindspeed_vita.config import MODULES
from mindspeed_vita.engine.metrics import STARTED

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "watch_a_run.md"
ENGINES = ("built-in", "`--engine hf`", "MindSpeed-LLM")
_NAMED = re.compile(r"(?:(eval/)?(loss|accuracy)|(grad_norm|lr))/.+")


def keys_of(engine: str) -> set[str]:
    """The keys that the table promises for an engine, with SOURCE and MODULE in place of names."""
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in PAGE.read_text().splitlines() if line.startswith("|")]
    start = next(place for place, row in enumerate(rows) if row[2:] == list(ENGINES))
    column, found = 2 + ENGINES.index(engine), set()
    for row in rows[start + 2 :]:
        if len(row) != 2 + len(ENGINES):
            break
        assert row[column] in ("yes", "no"), row
        found |= {row[0].strip("`")} if row[column] == "yes" else set()
    return found


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def check_keys(engine: str, run: Path, *, without: Collection[str] = ()) -> None:
    """A run wrote the keys of the table and no other.

    Args:
        engine: one of ENGINES.
        run: its folder.
        without: keys that the settings of the run leave out.
    """
    found = {_general(key) for line in lines_of(run) for key in line}
    assert found == keys_of(engine) - set(without)


def _general(key: str) -> str:
    named = _NAMED.fullmatch(key)
    return key if named is None else f"{key.partition('/')[0]}/MODULE" if named[3] else f"{named[1] or ''}{named[2]}/SOURCE"


def module_norms(run: Path) -> list[dict[str, float]]:
    """The gradient norm of each module that a step trains, by step; their squares add up to that of the whole.

    Every module is trained by one of the steps, but a step of texts alone has no gradients of tower and projector.
    """
    steps = [line for line in lines_of(run) if "loss" in line]
    found = [{key: line[key] for key in line if key.startswith("grad_norm/")} for line in steps]
    for norms, line in zip(found, steps):
        assert math.sqrt(sum(norm**2 for norm in norms.values())) == pytest.approx(line["grad_norm"], rel=1e-5)
    assert {key for norms in found for key in norms} == {f"grad_norm/{module}" for module in MODULES}
    return found


def check_shown(run: Path, page: Path, capsys: pytest.CaptureFixture[str], *, steps: int, saved: str) -> None:
    """`vita watch` and `vita report` show a run that is over.

    Args:
        run: its folder.
        page: where the report goes.
        capsys: what was printed before is dropped.
        steps: of the run.
        saved: its saved steps, as the view lists them.
    """
    capsys.readouterr()
    assert json.loads((run / STARTED).read_text())["recipe"]["train"]["steps"] == steps
    assert main(["watch", str(run), "--once"]) == 0 and main(["report", str(run), "--output", str(page)]) == 0
    seen, drawn = capsys.readouterr().out, page.read_text()
    assert re.search(rf"step +{steps}, the run is over", seen) and re.search(rf"saved steps +{saved}\b", seen), seen
    assert {"vision", "projector", "language", "tokens/s", "tiles/s"} <= set(seen.split()) and "of it waiting for data" in seen
    titles = ("Gradient norm of each module", "Tokens per second, all ranks", "Waiting for data", "Where the weights of tiny come from")
    assert all(title in drawn for title in titles)


def check_tensorboard(run: Path) -> None:
    """TensorBoard has all numbers of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    lines = lines_of(run)
    numbers = {
        (key, line["step"]): value for line in lines for key, value in line.items() if key != "step" and isinstance(value, (int, float))
    }
    tags = {key for key, _ in numbers}
    found = {(tag, event.step): event.value for tag in events.Tags()["scalars"] if tag in tags for event in events.Scalars(tag)}
    assert found.keys() == numbers.keys()
    assert all(abs(found[place] - value) <= 1e-6 * abs(value) for place, value in numbers.items())


def check_openmetrics(run: Path) -> None:
    """The OpenMetrics file has the numbers of a run's last step."""
    families = text_string_to_metric_families((run / "metrics.prom").read_text())
    samples = {(one.name, one.labels.get("name")): one.value for family in families for one in family.samples}
    last = [line for line in lines_of(run) if "loss" in line][-1]
    for key, value in last.items():
        family, _, name = key.partition("/")
        assert samples[(f"vita_{family}_by_name", name) if name else (f"vita_{key}", None)] == value, key
