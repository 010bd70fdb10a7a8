"""metrics.prom: what it holds, as the reference parser reads it."""

from __future__ import annotations

import math
from pathlib import Path

from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as text_format

from mindspeed_vita.engine.metrics import MetricsLog
from mindspeed_vita.engine.open_metrics import OpenMetrics


def test_the_file_holds_the_newest_step_and_evaluation(tmp_path: Path) -> None:
    run = 'a "run" \\ of\nmine'
    log = MetricsLog(tmp_path, step=0, sinks=[OpenMetrics(tmp_path / "metrics.prom", run)])
    log.write({"step": 1, "eval/loss": 2.5, "eval/loss/ocr": 2.25, "eval/tokens": 10})
    log.write({"step": 1, "loss": 4.0, "loss/gone": 1.0})
    log.write(
        {"step": 2, "loss": math.nan, "loss/ocr": 3.0, "loss/a b/c": math.inf, "memory": 2**40, "odd key": 1, "why": "text", "none": None}
    )
    content = (tmp_path / "metrics.prom").read_text()
    for parse in (text_string_to_metric_families, text_format):
        found = {(one.name, one.labels.get("name")): one for family in parse(content) for one in family.samples}
        values = {key: one.value for key, one in found.items()}
        assert math.isnan(values.pop(("vita_loss", None)))
        assert values == {
            ("vita_eval_loss", None): 2.5,
            ("vita_eval_loss_by_name", "ocr"): 2.25,
            ("vita_eval_tokens", None): 10,
            ("vita_eval_step", None): 1,
            ("vita_step", None): 2,
            ("vita_loss_by_name", "ocr"): 3.0,
            ("vita_loss_by_name", "a b/c"): math.inf,
            ("vita_memory", None): 2**40,
            ("vita_number", "odd key"): 1,
        }
        assert {one.labels["run"] for one in found.values()} == {run}
    again = MetricsLog(tmp_path, step=2, sinks=[OpenMetrics(tmp_path / "metrics.prom", run)])  # the run is started again
    again.write({"step": 3, "loss": 1.0})
    lines = (tmp_path / "metrics.prom").read_text().splitlines()
    resumed = {line.partition("{")[0]: line.rpartition(" ")[2] for line in lines}
    assert (resumed["vita_eval_loss"], resumed["vita_eval_step"], resumed["vita_step"]) == ("2.5", "1", "3")
    assert [path.name for path in tmp_path.iterdir() if "prom" in path.name] == ["metrics.prom"], "nothing unfinished stays"
