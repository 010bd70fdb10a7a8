"""Device files, the time model on hand-made loads and on a trace, calibration, and the command's times."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from mindspeed_vita.cli.main import main
from mindspeed_vita.planner.calibration import calibrated, factors, read_calibration
from mindspeed_vita.planner.decoder_load import DecoderLayout, DecoderShape, prefill_load, training_load
from mindspeed_vita.planner.device import Device, device_names, load_device
from mindspeed_vita.planner.layouts import Layout
from mindspeed_vita.planner.load import Kernels, Load, Transfer
from mindspeed_vita.planner.plan import Ranked, in_order
from mindspeed_vita.planner.proof import CONTENT, Case, proof_recipe
from mindspeed_vita.planner.published import TRAINING
from mindspeed_vita.planner.search import CLOSE
from mindspeed_vita.planner.time_model import StepTime, step_time
from mindspeed_vita.planner.timing import time_layout
from mindspeed_vita.planner.trace.step import trace
from mindspeed_vita.planner.traced_load import traced_load
from mindspeed_vita.planner.whole_step import step_attention, step_collectives, step_work

CONSTANTS = {
    "kind": "cuda",
    "peak_flops": 100.0,
    "matrix_best": 0.5,
    "matrix_half": 10.0,
    "attention_best": 0.25,
    "attention_half": 20.0,
    "memory_bytes": 1000,
    "memory_rate": 8.0,
    "node_devices": 8,
    "link_rate": 4.0,
    "link_seconds": 0.5,
    "network_rate": 2.0,
    "network_seconds": 1.0,
}
DEVICE = Device(name="made", **CONSTANTS)


def test_every_device_of_the_package_has_all_constants_and_each_names_its_source():
    assert {"910B", "910C", "H100", "H200"} <= set(device_names())
    folder = Path(load_device.__code__.co_filename).parent / "devices"
    for name in device_names():
        device = load_device(name.lower())
        assert device.name == name.lower() and device.network_rate < device.link_rate
        lines = (folder / f"{name.lower()}.yaml").read_text(encoding="utf-8").splitlines()[1:]
        assert all("#" in line for line in lines if not line.startswith(("kind", "node_devices: 8"))), name


@pytest.mark.parametrize(
    "change, message",
    [
        ({"link_rate": None}, "no link_rate"),
        (
            {"link_rate": None, "peak_flops": -1, "colour": 3},
            "no link_rate; unknown 'colour'; peak_flops is -1, expected a positive number",
        ),
        ({"peak_flops": "1e12"}, "YAML reads 1e9 as text"),
        ({"matrix_best": 1.5}, "matrix_best is 1.5, expected a share of the peak: at most 1"),
        ({"kind": "tpu"}, "kind is 'tpu', expected npu or cuda"),
        ({"node_devices": 7.5}, "node_devices is 7.5, expected a whole number"),
        ({"memory_rate": True}, "memory_rate is True, expected a positive number"),
        ({"peak_flops": 10**400}, "expected a positive number"),
    ],
)
def test_a_wrong_device_file_is_one_message(change: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    content = {key: value for key, value in {**CONSTANTS, **change}.items() if value is not None}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert main(["plan", "examples/tiny/stage1.yaml", "--device", str(file)]) == 2
    printed, said = capsys.readouterr()
    assert message in said and str(file) in said and said.count("\n") == 1 and not printed


def test_a_constant_that_a_device_file_names_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(CONSTANTS) + "peak_flops: 2.0e+12\n", encoding="utf-8")
    assert main(["plan", "examples/tiny/stage1.yaml", "--device", str(file)]) == 2
    assert f"device file {file}: line {len(CONSTANTS) + 1}: found the key 'peak_flops' again" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\xff\xfe", "line 1 is not JSON"),
        (b'{"seconds": 1}\n{"seconds": 1' + b"0" * 400 + b"}\n", "line 2: seconds is 10"),
        (b'{"seconds": 1}\n{"seconds": true}\n', "line 2: seconds is True; expected a positive number of seconds"),
        (b'{"seconds": 1}\n', "1 steps with 'seconds'; expected at least 2"),
    ],
)
def test_a_log_without_measured_steps_is_refused_by_its_line(content: bytes, message: str, tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=f"--calibrate .*metrics.jsonl: {message}"):
        read_calibration(str(tmp_path / "metrics.jsonl"))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--device", "H300"], "--device 'H300': expected one of 910B, 910C, A100"),
        (["--calibrate", "seconds=3"], "--calibrate: --device npu has no times"),
        (["--device", "H100", "--calibrate", "speed=3"], "unknown key 'speed'; expected seconds, or a part: matrix"),
        (["--device", "H100", "--calibrate", "seconds=fast"], "seconds is 'fast'; expected a positive number of seconds"),
        (["--device", "H100", "--calibrate", "seconds=3,seconds=4"], "a key stands there twice; give each once"),
        (["--device", "H100", "--calibrate", "nowhere.jsonl"], "--calibrate nowhere.jsonl: no such file"),
    ],
)
def test_bad_arguments_of_times_are_one_message(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(["plan", "examples/tiny/stage1.yaml", *words]) == 2
    printed, said = capsys.readouterr()
    assert message in said and said.count("\n") == 1 and not printed


def test_a_product_reaches_half_its_best_efficiency_at_the_named_size():
    assert DEVICE.matrix_seconds(10.0, 1) == pytest.approx(10.0 / (100 * 0.5 / 2))
    assert DEVICE.attention_seconds(20.0, 1) == pytest.approx(20.0 / (100 * 0.25 / 2))
    assert DEVICE.matrix_seconds(1e9, 1) == pytest.approx(1e9 / 50, rel=1e-6)


@pytest.mark.parametrize(
    "name, sent",
    [("all_reduce", 1.5), ("all_gather", 3.0), ("reduce_scatter", 0.75), ("all_to_all", 0.75), ("broadcast", 1.0), ("send", 1.0)],
)
def test_a_collective_of_four_ranks_sends_what_the_ring_algorithm_sends(name: str, sent: float):
    inside = Transfer(name=name, ranks=4, reach=8, calls=2, bytes=100)
    assert inside.seconds(DEVICE) == pytest.approx(100 * sent / 4 + 2 * 0.5)
    across = Transfer(name=name, ranks=4, reach=9, calls=2, bytes=100)
    assert across.seconds(DEVICE) == pytest.approx(100 * sent / 2 + 2 * 1.0)


def test_only_the_ring_hides_and_the_bubble_grows_with_what_a_rank_does():
    keys = Transfer(name="send", ranks=2, reach=2, calls=0, bytes=40)
    load = Load(matrix=Kernels(100, 0), attention=Kernels(100, 0), tensor=(keys,), ring=(keys,), memory=8, optimizer=16, idle=0.5)
    found = step_time(load, DEVICE)
    assert (found.matrix, found.attention, found.tensor, found.ring, found.memory, found.optimizer) == (2, 4, 10, 6, 1, 2)
    assert found.bubble == 2 + 4 + 10 + 6 + 1 and found.seconds == 2 * found.bubble + 2
    assert step_time(Load(matrix=Kernels(100, 0), tensor=(keys,), tensor_overlaps=True), DEVICE).tensor == 8


@pytest.mark.parametrize("case", [Case(tp=2, dp=2), Case(pp=2, recompute="full"), Case(cp=2, recompute="full")], ids=Case.describe)
def test_the_load_of_a_trace_has_its_work_and_its_collectives(case: Case, elsewhere):
    recipe = proof_recipe(case, "small")
    traced = elsewhere(trace, recipe, case.world, 0, content=CONTENT)
    load = traced_load(recipe, case.world, traced)
    kernels = (load.matrix, load.attention, load.tower, load.head)
    assert sum(part.flops for part in kernels) == pytest.approx(sum(step_work(traced).values()))
    assert load.attention.flops + load.tower.flops >= sum(step_attention(traced).values()) > load.attention.flops > 0
    groups = (load.tensor, load.exchange, load.ring, load.pipeline, load.replicas)
    sent = sum(transfer.bytes for group in groups for transfer in group)
    whole = step_collectives({traced.micro_batches: traced})
    assert sent == pytest.approx(sum(traffic.bytes for (name, _, _), traffic in whole.items() if name != "recv"))
    assert bool(load.tensor) == (case.tp > 1) and bool(load.ring) == (case.cp > 1) and bool(load.pipeline) == (case.pp > 1)
    assert load.idle == pytest.approx((case.pp - 1) / (traced.packs + case.pp - 1))
    executed = sum(step_work(traced).values())
    assert load.model_flops < executed and load.memory > 0 and load.optimizer > 0


def test_a_measured_step_scales_all_parts_and_a_measured_part_only_itself():
    parts = dict.fromkeys((field.name for field in fields(StepTime)), 0.0)
    modelled = StepTime(**{**parts, "matrix": 2, "attention": 4, "memory": 1, "tensor": 3})
    assert calibrated(modelled, factors(modelled, {"seconds": 25.0})).parts()["attention"] == pytest.approx(10)
    both = calibrated(modelled, factors(modelled, {"seconds": 20.0, "attention": 8.0}))
    assert both.seconds == pytest.approx(20) and both.attention == pytest.approx(8) and both.matrix == pytest.approx(4)
    assert calibrated(modelled, factors(modelled, {"attention": 8.0})).seconds == pytest.approx(14)
    with pytest.raises(ValueError, match="the parts take 8 s, and the step 7 s"):
        factors(modelled, {"seconds": 7.0, "attention": 8.0})
    with pytest.raises(ValueError, match="the modelled step has no such part"):
        factors(modelled, {"tower": 1.0})


def test_a_metrics_file_gives_its_median_step_without_the_first(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps({"step": step, "seconds": seconds}) + "\n" for step, seconds in enumerate((90, 4, 5, 9))))
    assert read_calibration(str(file)) == {"seconds": 5.0}
    file.write_text('{"step": 1, "seconds": 3}\n')
    with pytest.raises(ValueError, match="1 steps with 'seconds'; expected at least 2"):
        read_calibration(str(file))


def test_layouts_of_a_device_come_by_time():
    def ranked(name: int, work: int, seconds: float) -> Ranked:
        return Ranked(layout=Layout(name, 1, 1, 1, "none", "balanced"), peak=1, memory=1, work=work, idle=0.0, seconds=seconds)

    assert [one.layout.tp for one in in_order([ranked(1, 10, 3.0), ranked(2, 20, 2.0)], 64)] == [2, 1]


def test_the_work_of_shapes_is_the_formula_of_a_decoder():
    shape = DecoderShape(layers=2, hidden=8, heads=4, kv_heads=2, ffn=16, vocabulary=32)
    weights = 8 * (8 + 8 + 2 * 2 * 2) + 3 * 8 * 16
    assert shape.layer_weights == weights
    one = prefill_load(shape, DecoderLayout(world=1), tokens=10)
    assert one.matrix.flops == 2 * 2 * weights * 10 and one.attention.flops == 2 * 2 * 2 * 50 * 8 and one.head.flops == 2 * 32 * 8
    cut = prefill_load(shape, DecoderLayout(world=4, tp=2, cp=2), tokens=10)
    assert cut.matrix.flops == one.matrix.flops / 4 and cut.attention.flops == one.attention.flops / 4 and cut.tensor and cut.ring
    step = training_load(shape, DecoderLayout(world=1), length=10, micro_batch=1, global_batch=2)
    assert step.matrix.flops == 3 * 2 * one.matrix.flops and step.attention.flops == 3.5 * 2 * one.attention.flops
    assert step.model_flops == 3 * 2 * (one.matrix.flops + one.attention.flops + 2 * 10 * 32 * 8)


def test_the_documented_share_of_published_speeds_is_within_a_fifth():
    off = {row.name: row.predicted(load_device(row.device)) / row.speed - 1 for row in TRAINING}
    assert sum(abs(one) <= 0.2 for one in off.values()) == 6 and len(off) == 8, off


def test_the_longest_packs_are_those_of_the_devices_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], elsewhere, monkeypatch: pytest.MonkeyPatch
):
    traced = elsewhere(trace, proof_recipe(Case(), "small"), 1, 0, content=CONTENT)
    monkeypatch.setattr("mindspeed_vita.planner.plan._traced", lambda jobs, *rest: [traced for _ in jobs])
    monkeypatch.setattr("mindspeed_vita.planner.plan.step_collectives", lambda traces: {})
    file, memory = tmp_path / "mine.yaml", 1140 * 2**20
    file.write_text(yaml.safe_dump({**CONSTANTS, "memory_bytes": memory}), encoding="utf-8")
    assert main(["plan", "examples/tiny/stage1.yaml", "--longest", "--device", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["longest"]
    assert found["tokens"] > 0 and not found["limited_by_positions"]
    assert memory * (1 - 2 * CLOSE) < found["bytes"] <= memory


def test_the_command_prints_times_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], elsewhere, monkeypatch: pytest.MonkeyPatch):
    recipe = proof_recipe(Case(), "small")
    traced = elsewhere(trace, recipe, 1, 0, content=CONTENT)
    monkeypatch.setattr("mindspeed_vita.planner.plan._traced", lambda jobs, *rest: [traced for _ in jobs])
    monkeypatch.setattr("mindspeed_vita.planner.plan.step_collectives", lambda traces: {})
    modelled = time_layout(recipe, 1, [traced], load_device("910B")).modelled
    assert modelled > 0
    line = ["plan", "examples/tiny/stage1.yaml", "--device", "910B", "--calibrate", "seconds=2"]
    assert main(line) == 0
    printed = capsys.readouterr().out
    for words in ("time of a step on 910B", "calibrated", "2.00 s a step", "tokens/s per device, MFU", "fits 64.00 GiB", "not validated"):
        assert words in printed, words
    assert main([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["time"]["calibrated"]["step"] == pytest.approx(2.0) and "not validated" in found["time"]["status"]
    assert sum(found["time"]["ranks"][0].values()) == pytest.approx(found["time"]["modelled"]["step"])
