"""Every layout trains the same curve, and a run continues under any other layout, on every megatron-core line and across them."""

from __future__ import annotations

import shutil
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_vita.checkpoint.hf.weights import native_tensors
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.checkpoint.native import shards
from mindspeed_vita.checks.parity.full_tensors import take_slice
from mindspeed_vita.config import recipe_from_dict, recipe_to_dict
from mindspeed_vita.parallel.layout import TIMEOUT
from mindspeed_vita.platform import megatron_compat
from tests.pools import LINES, OVERLAYS

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
RUN = "tests.distributed.layout_runs:run"
LAYOUTS = [(2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 1), (1, 1, 1, 2), (2, 2, 1, 1), (1, 2, 2, 1)]
CROSSINGS = list(permutations(LINES, 2))
"""The line that saves, and the line that loads."""
BY_SOURCE = ("loss/pictures", "loss/text")
# fp32 sums in another order; after 6 steps the worst difference seen was 2e-7
SAME = {"rel": 1e-5}


@pytest.fixture(scope="module")
def start(tiny, pools, tmp_path_factory) -> Path:
    """Weights to start from: initial weights themselves depend on pp, and on 0.12 on tp."""
    directory = tmp_path_factory.mktemp("start")
    pools("installed").run(RUN, content=recipe_to_dict(tiny.recipe(directory)), stop=1)
    return directory


@pytest.fixture(scope="module")
def content(tiny, start):
    def build(directory: Path, **train: Any) -> dict[str, Any]:
        data = {"mixture": tiny.two_sources, "packing": "cross_source"}  # packs with pictures and text: losses by source are compared too
        return recipe_to_dict(tiny.recipe(directory, data=data, checkpoint={"init_from": str(start)}, train={"steps": 6, **train}))

    return build


@pytest.fixture(scope="module")
def expected(content, pools, tmp_path_factory, curves) -> dict[str, list[float]]:
    directory = tmp_path_factory.mktemp("expected")
    pools("installed").run(RUN, content=content(directory))
    return curves(directory)


@pytest.fixture(scope="module")
def curves():
    from json import loads

    def read(directory: Path) -> dict[str, list[float]]:
        lines = [loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        return {key: [line[key] for line in lines if key in line] for key in ("loss", "grad_norm", "supervised", *BY_SOURCE)}

    return read


def assert_same(found: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    assert found["supervised"] == expected["supervised"]
    for key in ("loss", *BY_SOURCE):
        assert found[key] == pytest.approx(expected[key], **SAME)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], **SAME)


def assert_equal_checkpoints(one: Path, two: Path) -> None:
    """Weights, main parameters and both moments are equal bit for bit."""
    for part in ("weights", "optimizer"):
        ours, theirs = (shards.Reader(native.find(folder) / part) for folder in (one, two))
        assert set(ours.keys()) == set(theirs.keys())
        unlike = [key for key in ours.keys() if not torch.equal(ours.tensor(key), theirs.tensor(key))]
        assert not unlike, f"{len(unlike)} of {len(ours.keys())} tensors of {part} differ, the first is {unlike[0]}"
    assert {key.split(".")[0] for key in ours.keys()} >= {"exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("sizes", LAYOUTS, ids=str)
def test_every_layout_trains_the_same_curve(layout_pool, content, expected, curves, tmp_path, sizes):
    tp, pp, cp, dp = sizes
    layout_pool.run(RUN, tp=tp, pp=pp, cp=cp, dp=dp, content=content(tmp_path))
    assert_same(curves(tmp_path), expected)


def test_bad_numbers_on_one_rank_make_every_rank_leave_the_step_out(tiny, layout_pool, tmp_path):
    recipe = recipe_to_dict(tiny.recipe(tmp_path, train={"steps": 3}, health={"on_bad_numbers": "skip"}))
    found = layout_pool.run("tests.distributed.layout_runs:skips", tp=2, dp=2, content=recipe, bad_rank=3, bad_step=2)
    assert found == [(2,)] * 4


def test_a_run_continues_under_any_other_layout(layout_pool, content, expected, curves, tmp_path):
    recipe = content(tmp_path)
    layout_pool.run(RUN, tp=2, pp=2, content=recipe, stop=2)
    layout_pool.run(RUN, cp=2, content=recipe, stop=3)
    layout_pool.run(RUN, pp=2, dp=2, content=recipe, stop=5)
    layout_pool.run(RUN, tp=2, content=recipe)
    assert_same(curves(tmp_path), expected)


@pytest.mark.parametrize(("line", "version"), [("0.12", (0, 12)), ("newest", megatron_compat.SUPPORTED[-1])])
def test_a_pool_runs_the_line_that_it_is_named_after(pools, line, version):
    assert pools(line).run("tests.distributed.layout_runs:core_line", tp=2) == [version] * 2


@pytest.mark.parametrize("other", OVERLAYS)
def test_a_run_continues_on_another_core_line(pools, content, expected, curves, tmp_path, other):
    recipe = content(tmp_path)
    pools(other).run(RUN, tp=2, content=recipe, stop=2)
    pools("installed").run(RUN, pp=2, content=recipe, stop=4)
    pools(other).run(RUN, content=recipe)
    assert_same(curves(tmp_path), expected)


@pytest.mark.parametrize(("saves", "loads"), CROSSINGS)
def test_steps_after_a_crossing_are_those_of_the_same_line_bit_for_bit(pools, content, tmp_path, saves, loads):
    stays = content(tmp_path / "stays")
    moves = {**stays, "checkpoint": {**stays["checkpoint"], "directory": str(tmp_path / "moves")}}
    pools(saves).run(RUN, tp=2, content=stays, stop=2)
    shutil.copytree(tmp_path / "stays", tmp_path / "moves")
    for line, recipe in ((saves, stays), (loads, moves)):
        pools(line).run(RUN, tp=2, content=recipe, stop=4)
    assert_equal_checkpoints(tmp_path / "stays", tmp_path / "moves")


@pytest.mark.parametrize(("saves", "loads"), CROSSINGS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_and_optimizer_cross_lines_and_layouts_exactly(pools, content, tmp_path, saves, loads, precision):
    recipe = content(tmp_path / "saved", precision=precision)
    pools(saves).run(RUN, tp=2, dp=2, content=recipe, stop=2)
    arguments = {"content": recipe, "source": str(tmp_path / "saved"), "target": str(tmp_path / "again")}
    pools(loads).run("tests.distributed.layout_runs:load_and_save", pp=2, cp=2, **arguments)
    assert_equal_checkpoints(tmp_path / "saved", tmp_path / "again")


INTERLEAVED = {"pp": 2, "virtual_stages": 2}
SPLITS = ({"pp": 2, "stage_layers": [1, 3]}, {"pp": 2, "dp": 2, "stage_layers": [3, 1]}, {"pp": 2, "layer_split": "balanced"}, {"tp": 2})
"""A run goes through these in turn, a step each."""


def test_a_tied_run_continues_under_another_split_of_the_layers(layout_pool, tiny, curves, tmp_path):
    """Checkpoints know nothing of stages: each layer and the table, with their moments, are there once."""
    language = {"num_layers": 4, "tie_embeddings": True}
    content = recipe_to_dict(tiny.recipe(tmp_path / "start", train={"steps": 5, "lr": 1e-3}, model={"language": language}))
    layout_pool.run(RUN, content=content, stop=1)
    folders = {}
    for name in ("one", "many"):
        folders[name] = {**content, "checkpoint": {**content["checkpoint"], "directory": str(tmp_path / name)}}
        shutil.copytree(tmp_path / "start", tmp_path / name)
    layout_pool.run(RUN, content=folders["one"])
    for stop, split in enumerate(SPLITS, start=1):
        sizes = {axis: split[axis] for axis in ("tp", "pp", "dp") if axis in split}
        parallel = {**content["parallel"], **{key: value for key, value in split.items() if key not in sizes}}
        layout_pool.run(RUN, **sizes, content={**folders["many"], "parallel": parallel}, stop=stop + 1)
    one, many = curves(tmp_path / "one"), curves(tmp_path / "many")
    assert many["loss"] == pytest.approx(one["loss"], **SAME) and many["grad_norm"] == pytest.approx(one["grad_norm"], **SAME)
    readers = [shards.Reader(native.find(tmp_path / name) / "weights") for name in ("one", "many")]
    assert readers[0].keys() == readers[1].keys() and "language.output_layer.weight" not in readers[0].keys()
    for key in readers[0].keys():
        difference = float((readers[1].tensor(key) - readers[0].tensor(key)).norm() / readers[0].tensor(key).norm())
        # Adam's first steps divide a gradient by itself, so tiny ones differ. Worst seen: 1.6e-4, a bias of queries, keys and values
        assert difference < 1e-3, (key, difference)


@pytest.mark.parametrize("modules", [("vision", "projector", "language"), ("projector",)], ids=["all", "stage-1"])
def test_an_interleaved_run_is_the_run_of_one_process_and_continues_as_any_other(layout_pool, tiny, curves, tmp_path, modules):
    """Held-out losses too. Between, the layers are dealt unevenly, and the pipeline is a plain one."""
    held_out = {"mixture": str(tiny.folder / "mixture.yaml"), "every": 1, "packs": 3}
    train = {"steps": 5, "lr": 1e-3, "modules": list(modules)}
    content = recipe_to_dict(tiny.recipe(tmp_path / "one", train=train, model={"language": {"num_layers": 4}}, eval=held_out))
    layout_pool.run(RUN, content=content, stop=1)
    shutil.copytree(tmp_path / "one", tmp_path / "many")
    layout_pool.run(RUN, content=content)
    splits = (INTERLEAVED, {"pp": 2, "dp": 2, "virtual_stages": 2}, {"pp": 2}, {**INTERLEAVED, "stage_layers": [1, 1, 1, 1]})
    for stop, split in enumerate(splits, start=2):
        sizes = {axis: split[axis] for axis in ("tp", "pp", "dp") if axis in split}
        parallel = {**content["parallel"], **{key: value for key, value in split.items() if key not in sizes}}
        told = {**content, "parallel": parallel, "checkpoint": {**content["checkpoint"], "directory": str(tmp_path / "many")}}
        layout_pool.run(RUN, **sizes, content=told, stop=stop)
    one, many = curves(tmp_path / "one"), curves(tmp_path / "many")
    assert many["loss"] == pytest.approx(one["loss"], **SAME) and many["grad_norm"] == pytest.approx(one["grad_norm"], **SAME)
    readers = [shards.Reader(native.find(tmp_path / name) / part) for name in ("one", "many") for part in ("weights", "optimizer")]
    assert readers[0].keys() == readers[2].keys() and readers[1].keys() == readers[3].keys()


def cut(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the tower's weights shared out over tensor parallelism."""
    return {**recipe, "parallel": {**recipe["parallel"], "vision_parallel": "tensor"}}


def test_a_cut_tower_trains_the_same_curve_and_continues_whole(layout_pool, content, expected, curves, tmp_path):
    recipe = content(tmp_path)
    layout_pool.run(RUN, tp=2, cp=2, content=cut(recipe), stop=3)
    layout_pool.run(RUN, content=recipe, stop=4)
    layout_pool.run(RUN, tp=2, pp=2, content=cut(recipe))
    assert_same(curves(tmp_path), expected)


def test_a_cut_tower_goes_to_a_whole_one_and_back_exactly(layout_pool, content, tmp_path):
    first, whole, again = (tmp_path / name for name in ("first", "whole", "again"))
    recipe = content(first, precision="bf16")
    layout_pool.run(RUN, tp=2, dp=2, content=cut(recipe), stop=2)
    load_and_save = "tests.distributed.layout_runs:load_and_save"
    layout_pool.run(load_and_save, content=recipe, source=str(first), target=str(whole))
    layout_pool.run(load_and_save, tp=2, content=cut(recipe), source=str(whole), target=str(again))
    for part in ("weights", "optimizer"):
        ours, *others = (shards.Reader(native.find(folder) / part) for folder in (first, whole, again))
        assert all(ours.keys() == other.keys() for other in others)
        assert all(torch.equal(ours.tensor(key), other.tensor(key)) for key in ours.keys() for other in others)
    assert {key.split(".")[0] for key in ours.keys()} == {"exp_avg", "exp_avg_sq", "param"}
    # exports are made of these, so they do not depend on the cut either
    model = recipe_from_dict(recipe).model
    shapes = {name: tuple(tensor.shape) for name, tensor in native_tensors(model).items()}
    assert {name: tuple(tensor.shape) for name, tensor in native.read_full_weights(first)[0].items()} == shapes


PADDED = [  # 3 heads over 2 ranks, and 1 head over 2, so that a rank holds a zero head only
    {"hidden_size": 48, "num_heads": 3, "qkv_bias": False, "qk_norm": True, "norm": "rms_norm"},
    {"num_heads": 1},
]


@pytest.mark.parametrize("vision", PADDED, ids=["3-heads", "1-head"])
def test_zero_heads_are_not_saved_and_stay_zero(layout_pool, tiny, curves, tmp_path, vision):
    def content(name: str, start: str = str(tmp_path / "start")) -> dict[str, Any]:
        recipe = recipe_to_dict(tiny.recipe(tmp_path / name, checkpoint={"init_from": start}, train={"steps": 4}))
        return {**recipe, "model": {**recipe["model"], "vision": {**recipe["model"]["vision"], **vision}}}

    recipe = content("cut")
    layout_pool.run(RUN, content=content("start", ""), stop=1)
    layout_pool.run(RUN, content=content("whole"))
    layout_pool.run(RUN, tp=2, content=cut(recipe), stop=2)
    layout_pool.run(RUN, content=recipe, stop=3)
    layout_pool.run(RUN, tp=2, content=cut(recipe))
    assert_same(curves(tmp_path / "cut"), curves(tmp_path / "whole"))
    shapes = {name: tuple(tensor.shape) for name, tensor in native_tensors(recipe_from_dict(recipe).model).items()}
    held = shards.Reader(native.find(tmp_path / "cut") / "weights")
    assert {name: held.shape(name) for name in held.keys()} == shapes, "what is exported"
    optimizer = shards.Reader(native.find(tmp_path / "cut") / "optimizer")
    assert {name: optimizer.shape(f"exp_avg.{name}") for name in shapes} == shapes
    initial = "tests.distributed.layout_runs:initial_tower"
    full = layout_pool.run(initial, content=recipe)[0]
    for tp_rank, mine in enumerate(layout_pool.run(initial, tp=2, content=cut(recipe))):
        for name, tensor in mine.items():
            part = take_slice(name, full[name], tp_rank, 2, tower_cut=True, heads=vision["num_heads"])
            same = torch.equal(tensor, part)
            assert same or name.endswith("_norm.weight"), name  # a zero head's norm starts at 1, and multiplies zeros


def test_initial_weights_do_not_depend_on_the_cut(layout_pool, content, tmp_path):
    recipe = content(tmp_path)
    initial = "tests.distributed.layout_runs:initial_tower"
    whole = layout_pool.run(initial, content=recipe)[0]
    for tp_rank, mine in enumerate(layout_pool.run(initial, tp=2, content=cut(recipe))):
        assert mine.keys() == whole.keys()
        assert sum(mine[name].shape != whole[name].shape for name in mine) == 2 * 6  # of each layer, four weights and two biases
        for name, tensor in mine.items():
            assert torch.equal(tensor, take_slice(name, whole[name], tp_rank, 2, tower_cut=True)), name


def test_a_stage_without_anything_to_train_saves_and_resumes(layout_pool, content, curves, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    layout_pool.run(RUN, content=content(one, modules=["projector"]))
    recipe = content(two, modules=["projector"])
    layout_pool.run(RUN, pp=2, dp=2, content=recipe, stop=3)
    layout_pool.run(RUN, pp=2, dp=2, content=recipe)
    assert_same(curves(two), curves(one))


@pytest.mark.parametrize("precision, tolerance", [("bf16", 2e-3)])
def test_bf16_on_two_data_parallel_ranks_follows_one_process(layout_pool, content, curves, tmp_path, precision, tolerance):
    one, two = tmp_path / "one", tmp_path / "two"
    layout_pool.run(RUN, content=content(one, precision=precision, steps=20))
    layout_pool.run(RUN, dp=2, content=content(two, precision=precision, steps=20))
    assert curves(two)["loss"] == pytest.approx(curves(one)["loss"], rel=tolerance)


HELD_OUT = [(2, 1, 1, 1, 1), (1, 2, 1, 1, 1), (1, 1, 2, 1, 1), (1, 1, 1, 2, 1), (1, 1, 2, 1, 2), (1, 1, 1, 4, 1)]
"""tp, pp, cp, dp, ulysses; ten packs do not divide by four ranks."""


@pytest.fixture(scope="module")
def measured(tiny, start, pools, tmp_path_factory):
    """Measures the common weights, and what one step makes of them: both evaluations' numbers by their keys."""
    from json import loads

    def measure(line: str = "installed", tp: int = 1, pp: int = 1, cp: int = 1, dp: int = 1, ulysses: int = 1) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("held_out")
        told = {"eval": {"mixture": tiny.held_out, "every": 1}, "parallel": {"ulysses": ulysses}, "checkpoint": {"init_from": str(start)}}
        content = recipe_to_dict(tiny.recipe(folder, data={"mixture": tiny.two_sources, "packing": "cross_source"}, **told))
        pools(line).run(RUN, tp=tp, pp=pp, cp=cp, dp=dp, content=content, stop=1)
        lines = [loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key.startswith("eval/")} for line in lines if "eval/loss" in line]

    return measure


def assert_same_scores(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for ours, theirs, tolerance in zip(found, expected, (1e-6, 1e-5), strict=True):  # the second ones are of weights that a step moved
        assert ours.keys() == theirs.keys() >= {"eval/loss/seen", "eval/accuracy/counted"}
        for key in theirs.keys() - {"eval/seconds"}:
            exact = "loss" not in key
            assert ours[key] == (theirs[key] if exact else pytest.approx(theirs[key], rel=tolerance)), key


@pytest.fixture(scope="module")
def scores(measured) -> list[dict[str, Any]]:
    """Of one process."""
    found = measured()
    assert found[0]["eval/failed"] == 0 and found[0]["eval/loss"] > found[1]["eval/loss"] > 0
    return found


@pytest.mark.parametrize("sizes", HELD_OUT, ids=str)
def test_the_held_out_loss_is_that_of_one_process_under_every_layout(measured, scores, sizes):
    tp, pp, cp, dp, ulysses = sizes
    assert_same_scores(measured(tp=tp, pp=pp, cp=cp, dp=dp, ulysses=ulysses), scores)


@pytest.mark.parametrize("other", OVERLAYS)
def test_the_held_out_loss_is_the_same_on_another_core_line(measured, scores, pools, other):
    pools(other)  # skips here where the line is missing
    assert_same_scores(measured(other, tp=2, pp=2), scores)


def test_the_groups_of_ulysses_wait_as_long_as_the_others(pools):
    others = TIMEOUT.total_seconds() / 60
    assert pools("installed").run("tests.distributed.layout_runs:group_timeouts", cp=4, minutes=7) == [[7, 7, others, others]] * 4


def test_a_pipeline_takes_packs_one_by_one(content, pools, tmp_path):
    """A step of 8 packs: a rank holds the one that it cuts, and the loader the one before."""
    assert max(pools("installed").run("tests.distributed.layout_runs:held_packs", pp=2, content=content(tmp_path, global_batch=8))) <= 2


def test_later_stages_hear_of_what_the_first_could_not_decode(pools, tmp_path):
    heard = pools("installed").run("tests.distributed.layout_runs:told_failures", tp=2, pp=2, folder=str(tmp_path))
    assert heard == [[[True, False], [True, False]]] * 4


def test_a_ring_of_two_groups_and_one_over_nodes_train_the_same_curve(content, pools, tmp_path: Path, curves) -> None:
    """Two groups change no bit. Over two nodes of two processes, sums have another order."""
    variants = {"one": {}, "two": {"ring_two_groups": True}, "nodes": {"ring_two_groups": True}}
    arguments = {"content": content(tmp_path, steps=3), "folder": str(tmp_path), "variants": variants, "local_world_size": 2}
    assert pools("installed").run("tests.distributed.layout_runs:ring_variants", cp=4, **arguments) == [2] * 4
    one, two, nodes = (curves(tmp_path / name) for name in variants)
    assert one == two
    assert_same(nodes, one)
    assert nodes["grad_norm"] == pytest.approx(one["grad_norm"], **SAME)
