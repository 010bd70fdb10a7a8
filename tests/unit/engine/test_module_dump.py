"""msprobe around steps: when it is switched on and off, what is refused, and where it is installed what two runs' dumps show."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mindspeed_vita.config import DebugConfig
from mindspeed_vita.engine.loop import train
from mindspeed_vita.engine.module_dump import ModuleDump
from tests.fake_msprobe import stand_in
from tests.tiny_data import TinyData, tiny  # noqa: F401 - a fixture

ROOT = Path(__file__).resolve().parents[3]
OVERLAY = ROOT / ".venv" / "overlays" / "msprobe-26.2.0"


def config(folder: Path, **content: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps({"task": "statistics", "level": "L0", "rank": [], "step": [1], **content}), encoding="utf-8")
    return path


def test_a_run_dumps_its_steps_under_their_own_numbers_also_after_a_resume(monkeypatch, tmp_path, tiny: TinyData):  # noqa: F811
    calls = stand_in(monkeypatch)
    path = config(tmp_path)
    recipe = tiny.recipe(tmp_path / "run", train={"steps": 3, "global_batch": 1}, debug={"msprobe": str(path)})
    train(recipe, stop_at_step=2)
    train(recipe)
    made = ("PrecisionDebugger", str(path), str(tmp_path / "run" / "msprobe"))
    assert [call for call in calls if call[0] != "start"] == [
        made, ("set_init_step", 1), "stop", "step", ("set_init_step", 2), "stop", "step", made, ("set_init_step", 3), "stop", "step"
    ]  # fmt: skip
    assert {type(call[1]).__name__ for call in calls if call[0] == "start"} == {"VitaModel"}, "names begin at the bare model"


def test_a_step_that_fails_is_written_and_chunks_are_given_as_a_list(monkeypatch, tmp_path):
    calls = stand_in(monkeypatch)
    dump = ModuleDump(DebugConfig(msprobe=str(config(tmp_path, dump_path="elsewhere"))), tmp_path)
    chunks = [torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)]
    with pytest.raises(RuntimeError, match="lost"), dump.step(7, chunks):
        raise RuntimeError("lost")
    made = ("PrecisionDebugger", str(tmp_path / "config.json"), "elsewhere")
    assert calls == [made, ("set_init_step", 7), ("start", chunks), "stop", "step"]


def test_without_the_key_msprobe_is_not_imported(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "msprobe", None)
    with ModuleDump(DebugConfig(), tmp_path).step(1, torch.nn.Linear(1, 1)):
        pass


def test_what_cannot_be_used_is_refused_with_its_remedy(monkeypatch, tmp_path):
    def refused(path: Path) -> str:
        with pytest.raises(ValueError, match="debug.msprobe=") as error:
            ModuleDump(DebugConfig(msprobe=str(path)), tmp_path)
        return str(error.value)

    assert "No such file or directory; name msprobe's config.json" in refused(tmp_path / "gone.json")
    for text, said in (("{", "is not JSON"), ("[]", "holds list, expected an object with `task` and `level`")):
        (tmp_path / "bad.json").write_text(text, encoding="utf-8")
        assert said in refused(tmp_path / "bad.json")
    for name in [name for name in sys.modules if name.split(".")[0] == "msprobe"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not (Path(path) / "msprobe").is_dir()])
    said = "needs the package mindstudio-probe, but msprobe is not installed; run `pip install mindstudio-probe`"
    assert said in refused(config(tmp_path))
    stand_in(monkeypatch, refuses="level is invalid")
    assert "is refused by msprobe: level is invalid" in refused(config(tmp_path))


# what follows needs msprobe itself


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Of a process that finds msprobe."""
    paths = [str(ROOT), *([str(OVERLAY)] if OVERLAY.is_dir() else [])]
    if len(paths) == 1 and importlib.util.find_spec("msprobe") is None:
        pytest.skip("msprobe is not installed: bash scripts/msprobe_overlay.sh installs it beside the project's environment")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}


RUN = """
import sys
from pathlib import Path
import torch
from mindspeed_vita.config import load_recipe
from mindspeed_vita.models.vita import VitaModel
if sys.argv[2] == "faulty":
    forward = VitaModel.forward
    def faulty(self, *arguments, **named):
        with torch.no_grad():
            self.language.decoder.layers[1].mlp.linear_fc1.weight[0, 0] = 0.5
        return forward(self, *arguments, **named)
    VitaModel.forward = faulty
if __name__ == "__main__":
    from mindspeed_vita.engine.loop import train
    train(load_recipe(Path(sys.argv[1])))
"""


def test_the_first_module_that_differs_is_the_one_with_another_weight(environment, tmp_path, tiny: TinyData):  # noqa: F811
    import yaml

    from mindspeed_vita.config import recipe_to_dict

    (tmp_path / "run.py").write_text(RUN, encoding="utf-8")
    for name in ("golden", "faulty"):
        settings = {"train": {"steps": 1, "global_batch": 1}, "debug": {"msprobe": str(config(tmp_path))}}
        recipe = tiny.recipe(tmp_path / name, **settings)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe_to_dict(recipe)), encoding="utf-8")
        command = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / f"{name}.yaml"), name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    folders = [str(tmp_path / name / "msprobe" / "step1") for name in ("faulty", "golden")]
    command = [sys.executable, "-m", "msprobe.msprobe", "compare", "--target_path", folders[0], "--golden_path", folders[1]]
    done = subprocess.run([*command, "--output_path", str(tmp_path)], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (table,) = tmp_path.glob("compare_result_rank*.csv")
    with table.open(encoding="utf-8", newline="") as file:
        differs = [row["NPU Name"] for row in csv.DictReader(file) if row["L2norm diff"] not in ("0", "0.0", "", "N/A")]
    layer = "Module.language.decoder.layers.1.mlp.linear_fc1.ColumnParallelLinear.forward.0"
    assert differs[:2] == [f"{layer}.parameters.weight", f"{layer}.output.0"], differs[:5]
