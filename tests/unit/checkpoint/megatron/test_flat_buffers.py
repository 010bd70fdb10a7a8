"""Flat buffers: the places that we compute are those of megatron.core's own distributed optimizer, on every core line."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_vita.checkpoint.megatron.flat_buffers import Buckets, alone_in_bucket, flat_places, parameter_order, stored_size
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.cli.main import main
from mindspeed_vita.config import Recipe
from mindspeed_vita.engine.optimizer import build_optimizer, wrap_model
from mindspeed_vita.engine.session import init_distributed, shutdown
from mindspeed_vita.platform import get_platform
from tests.tiny_checkpoint import TINY, tiny_recipe


@pytest.fixture(scope="module", autouse=True)
def groups() -> Iterator[None]:
    yield
    shutdown()


def build(recipe: Recipe) -> Any:
    from mindspeed_vita.parallel.build import build_model

    return build_model(recipe, init_distributed(recipe, get_platform("cpu")))


@pytest.mark.parametrize(
    ("tower", "projector", "family", "qk_norm"),
    [
        ("intern_vit", "mlp", "qwen2", False),
        ("intern_vit", "mlp_newline", "qwen3", True),
        ("siglip", "mlp_stride", "qwen2", False),
        ("clip", "mlp", "qwen3", False),
    ],
)
def test_the_order_is_that_of_the_model(tower: str, projector: str, family: str, qk_norm: bool) -> None:
    model = replace(
        TINY,
        vision=replace(TINY.vision, tower=tower, qk_norm=qk_norm),
        projector=replace(TINY.projector, kind=projector),
        language=replace(TINY.language, family=family, head_width=8),
    )
    names = [name for name, _ in build(tiny_recipe(model)).named_parameters()]
    assert parameter_order(random.Random(0).sample(names, len(names))) == names


def test_a_plugins_module_has_no_known_place() -> None:
    for name in ("vision.patches.weight", "vision.layers.0.gate.weight", "language.decoder.layers.1.router.weight", "audio.conv.weight"):
        with pytest.raises(ValueError, match=f"the place of {name} in MindSpeed-LLM's optimizer is not known"):
            parameter_order(["vision.class_token", name])


def stepped(recipe: Recipe, tmp_path: Path, **buckets: Any) -> tuple[Any, Any, dict[Any, Any]]:
    """A model of ours and its optimizer after an update, and what core stores of the optimizer."""
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel

    model = build(recipe)
    wrapped = wrap_model(model)
    if buckets:
        wrapped = DistributedDataParallel(model.config, replace(wrapped.ddp_config, **buckets), model)
    optimizer = build_optimizer(wrapped, recipe, get_platform("cpu"))
    for number, parameter in enumerate(model.parameters()):
        parameter.main_grad.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    optimizer.step()
    optimizer.data_parallel_group_gloo = parallel_state.get_data_parallel_group(with_context_parallel=True)
    optimizer.save_parameter_state(str(tmp_path / "core.pt"))
    return model, optimizer, torch.load(tmp_path / "core.pt", weights_only=False)


def bf16_recipe() -> Recipe:
    recipe = tiny_recipe()
    return replace(recipe, train=replace(recipe.train, precision="bf16", vision_lr_mult=0.1, global_batch=1))


def test_a_converted_optimizer_is_what_core_itself_stores(tmp_path: Path) -> None:
    recipe = bf16_recipe()
    model, optimizer, expected = stepped(recipe, tmp_path)
    state = native.TrainState(step=1, packs=1, fingerprint="a" * 64, failed_samples=(), layout={"tp": 1, "pp": 1, "cp": 1, "dp": 1})
    native.save(tmp_path / "run", state, model=model, optimizer=optimizer, recipe=recipe, rng={}, keep=0)
    arguments = ["--from", str(tmp_path / "run"), "--to", "mindspeed-llm", "--output", str(tmp_path / "ranks"), "--optimizer"]
    assert main(["convert", *arguments]) == 0
    found = torch.load(tmp_path / "ranks/iter_0000001/mp_rank_00/distrib_optim.pt", weights_only=False)
    assert found.keys() == expected.keys() and found[0].keys() == expected[0].keys()
    (ours,), (theirs,) = found[0].values(), expected[0].values()
    for kind in ("param", "exp_avg", "exp_avg_sq"):
        assert torch.equal(ours[kind], theirs[kind]), kind
    assert ours["numel_unpadded"] == theirs["numel_unpadded"] == ours["param"].numel()

    assert main(["convert", "--from", str(tmp_path / "ranks"), "--to", "native", "--output", str(tmp_path / "back"), "--optimizer"]) == 0
    model, optimizer, _ = stepped(recipe, tmp_path)
    optimizer.optimizer.state.clear()
    folder = native.find(tmp_path / "back")
    found_state = native.load(folder, model=model, optimizer=optimizer, recipe=recipe, fingerprint="a" * 64)
    assert found_state == state, "a run of the built-in engine continues from it"
    optimizer.save_parameter_state(str(tmp_path / "again.pt"))
    (again,) = torch.load(tmp_path / "again.pt", weights_only=False)[0].values()
    assert all(torch.equal(again[kind], theirs[kind]) for kind in ("param", "exp_avg", "exp_avg_sq"))


@pytest.mark.parametrize("size", [1, 5_000, 20_000])
def test_places_in_buckets_are_those_of_core(tmp_path: Path, size: int) -> None:
    model, _, stored = stepped(bf16_recipe(), tmp_path, overlap_grad_reduce=True, bucket_size=size)
    (buffer,) = stored[0].values()
    named = dict(model.named_parameters())
    sizes = {name: parameter.numel() for name, parameter in named.items()}
    places = flat_places(sizes, Buckets(size=size))
    assert stored_size(sizes, places) == buffer["param"].numel()
    for name, at in places.items():
        assert torch.equal(buffer["param"][at : at + sizes[name]].view(named[name].shape).bfloat16(), named[name].detach()), name


SIZES = {"a": 100, "b": 64, "c": 1000, "d": 7}


@pytest.mark.parametrize("size", [None, 1, 500, 1100, 10**6])
@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_parameters_lie_backwards_and_apart(size: int | None, ranks: int) -> None:
    places = flat_places(SIZES, Buckets(size=size, ranks=ranks))
    assert list(places) == list(reversed(SIZES)), "backwards"
    ends = [places[name] + SIZES[name] for name in places]
    assert all(start >= end for start, end in zip(list(places.values())[1:], ends))
    assert stored_size(SIZES, places) == max(ends)
    if size is None or size > 2000:
        assert places == {"d": 0, "c": 64, "b": 1088, "a": 1152}
    if size == 1:
        assert places == {"d": 0, "c": 7, "b": 1007, "a": 1071}, "each in a bucket of its own"


def test_sizes_that_are_multiples_of_64_lie_alike_in_any_buckets() -> None:
    """Those of all released models are, so that a run may cut its buckets as it likes."""
    sizes = {"a": 64 * 5, "b": 64, "c": 64 * 31}
    whole = flat_places(sizes, Buckets())
    assert all(flat_places(sizes, Buckets(size=size, ranks=ranks)) == whole for size in (1, 100, 400, 2000) for ranks in (1, 2, 24))


def test_a_shared_table_has_a_bucket_of_its_own() -> None:
    table = "language.embedding.word_embeddings.weight"
    sizes = {"a": 100, table: 256, "b": 100}
    assert alone_in_bucket(sizes, tied=True, pp=2) == table
    assert alone_in_bucket(sizes, tied=True, pp=1) == alone_in_bucket(sizes, tied=False, pp=2) == ""
    assert flat_places(sizes, Buckets(), table) == {"b": 0, table: 128, "a": 384}
    with pytest.raises(ValueError, match="does not begin at a bucket's border"):
        flat_places({**sizes, "b": 60}, Buckets(), table)


def test_buckets_are_those_of_the_command_line() -> None:
    from types import SimpleNamespace

    told = SimpleNamespace(overlap_grad_reduce=True, data_parallel_size=64, context_parallel_size=2)
    assert Buckets.of(told, stage=0, num_parameters=10) == Buckets(size=128_000_000, ranks=128)
    assert Buckets.of(told, stage=1, num_parameters=10) == Buckets(ranks=128)
    told.ddp_num_buckets = 5
    assert Buckets.of(told, stage=0, num_parameters=1000).size == 200
    told.ddp_num_buckets, told.ddp_bucket_size = None, 300
    assert Buckets.of(told, stage=0, num_parameters=1000).size == 300
    told.overlap_grad_reduce = False
    assert Buckets.of(told, stage=0, num_parameters=1000).size is None
