"""What the workers of a LayoutPool carry out for the tests of this folder."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from typing import Any, Optional

import torch


def run(layout: Any, *, content: dict[str, Any], stop: Optional[int] = None) -> int:
    """Train a recipe under the layout of the pool's call; returns the steps done."""
    from mindspeed_vita.config import recipe_from_dict
    from mindspeed_vita.engine.loop import train

    return train(recipe_from_dict(_under(layout, content)), stop_at_step=stop).step


def ring_variants(layout: Any, *, content: dict[str, Any], folder: str, variants: dict[str, dict[str, Any]], local_world_size: int) -> int:
    """Trains a recipe once for each variant of its section parallel, in a folder of the variant's name.

    Returns:
        Ring ranks of a node in the last variant, for which the launcher says that so many processes share one.
    """
    import os
    from unittest import mock

    from mindspeed_vita.engine import session

    made, open_ring = [], session.with_ring

    def noted(*arguments: Any, **options: Any) -> Any:
        made.append(open_ring(*arguments, **options))
        return made[-1]

    for name, parallel in variants.items():
        checkpoint = {**content["checkpoint"], "directory": f"{folder}/{name}"}
        sections = {"parallel": {**content["parallel"], **parallel}, "checkpoint": checkpoint}
        told = {"LOCAL_WORLD_SIZE": str(local_world_size)} if name == list(variants)[-1] else {}
        with mock.patch.dict(os.environ, told), mock.patch.object(session, "with_ring", noted):
            run(layout, content={**content, **sections})
    return int(made[-1].node_size)


def skips(layout: Any, *, content: dict[str, Any], bad_rank: int, bad_step: int) -> tuple[int, ...]:
    """Trains a recipe in which one rank alone finds one step bad; returns the steps that this rank left out."""
    from unittest import mock

    import torch.distributed as dist

    from mindspeed_vita.config import recipe_from_dict
    from mindspeed_vita.engine import loop

    done, made, make = [0], [], loop.BadNumbers

    class Spoilt(make):  # type: ignore[valid-type, misc]
        def judge(self, loss: float, norm: float) -> int:
            done[0] += 1
            made[:] = [self]
            return 4 if done[0] == bad_step and dist.get_rank() == bad_rank else 0

    with mock.patch.object(loop, "BadNumbers", Spoilt):
        loop.train(recipe_from_dict(_under(layout, content)))
    return tuple(made[0].skipped)


def preference(layout: Any, *, path: str, name: str = "run", prepare: bool = False, steps: int = 5) -> None:
    """Trains docs/add_an_objective.md's recipe, with the module next to it, under the layout of the pool's call.

    Args:
        layout: the pool's.
        path: the recipe.
        name: of the run's folder, next to the recipe. Where there is no reference in it, that of the folder "run" is taken.
        prepare: write the reference first, and the start if there is none.
        steps: to train.
    """
    import shutil
    import sys
    from pathlib import Path

    import torch.distributed as dist

    from mindspeed_vita.config import load_recipe
    from mindspeed_vita.engine.loop import train
    from tests.preference_page import write_start

    sizes = [f"parallel.{axis}={getattr(layout, f'{axis}_size')}" for axis in ("tp", "pp", "cp")]
    folder = Path(path).parent / name
    recipe = load_recipe(path, [*sizes, f"checkpoint.directory={folder}", "model.language.num_layers=4"])  # 3 do not divide by pp 2
    if not Path(recipe.checkpoint.init_from).is_dir():
        write_start(recipe)
    if prepare:
        sys.modules["my_dpo"].write_reference(recipe)
    elif dist.get_rank() == 0:
        folder.mkdir()
        shutil.copy(folder.with_name("run") / "reference.json", folder)
    dist.barrier()
    if steps:
        train(recipe, stop_at_step=steps)


def core_line(layout: Any) -> tuple[int, int]:
    """The line of megatron-core that this worker imports."""
    from mindspeed_vita.platform.megatron_compat import core_version

    return core_version()


def _under(layout: Any, content: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the sizes of a layout."""
    return {**content, "parallel": {**content["parallel"], "tp": layout.tp_size, "pp": layout.pp_size, "cp": layout.cp_size}}


def answer(layout: Any, *, folder: str, prompt: str, images: list[str], videos: list[str]) -> tuple[int, ...]:
    """Tokens that `vita generate` finds on this rank, under the tp and cp of the pool's call."""
    from mindspeed_vita.inference.generate import load_generator
    from mindspeed_vita.inference.request import ask

    generator = load_generator(folder, tp=layout.tp_size, cp=layout.cp_size)
    return generator.generate(ask(prompt, images, videos), max_new_tokens=8).token_ids


def load_and_save(layout: Any, *, content: dict[str, Any], source: str, target: str) -> None:
    """Loads a checkpoint into a fresh model and optimizer under the layout of the pool's call, and saves it again, untrained."""
    from mindspeed_vita.checkpoint.native import checkpoint as native
    from mindspeed_vita.config import recipe_from_dict
    from mindspeed_vita.engine import optimizer as optim
    from mindspeed_vita.parallel.build import build_model
    from mindspeed_vita.platform import get_platform

    recipe = recipe_from_dict(_under(layout, content))
    wrapped = optim.wrap_model(build_model(recipe, layout))
    optimizer = optim.build_optimizer(wrapped, recipe, get_platform())
    folder = native.find(source)
    fingerprint = native.load_state(folder).fingerprint
    state = native.load(folder, model=wrapped.module, optimizer=optimizer, recipe=recipe, fingerprint=fingerprint)
    native.save(target, state, model=wrapped.module, optimizer=optimizer, recipe=recipe, rng={}, keep=0)


def initial_tower(layout: Any, *, content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """This rank's initial weights of tower and projector."""
    from mindspeed_vita.config import recipe_from_dict
    from mindspeed_vita.parallel.build import build_model

    model = build_model(recipe_from_dict(_under(layout, content)), layout)
    return {name: parameter.detach() for name, parameter in model.named_parameters() if not name.startswith("language.")}


def head(layout: Any, *, mode: str, supervised: list[int], chosen: list[int]) -> dict[str, Any]:
    """One rank's language head on 32 tokens: rows of logits it computed, loss, this rank's parts of the gradients, chosen logits."""
    from unittest import mock

    import torch.nn.functional as F

    from mindspeed_vita.parallel.lm_head import LanguageHead

    generator = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(32, 1, 16, generator=generator), torch.randn(48, 16, generator=generator)
    labels = torch.full((32,), -100).index_copy(0, torch.tensor(supervised, dtype=torch.int64), torch.arange(len(supervised)) * 5 % 48)
    size, rank = layout.tp_size, layout.tp_rank
    hidden_L1H, weight_VH = (whole.chunk(size)[rank].clone().requires_grad_() for whole in (hidden, weight))
    rows: list[int] = []
    linear = F.linear

    def counted(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return linear(x, w)

    language_head = LanguageHead(mode=mode, chunk=4, tp_rank=rank, tp_size=size, tp_group=layout.tp_group)
    with mock.patch.object(F, "linear", counted):
        losses = language_head.losses(
            hidden_L1H, weight_VH, labels, torch.linspace(0.5, 1, 32), torch.tensor(supervised, dtype=torch.int64)
        )
    computed = sum(rows)
    grads = torch.autograd.grad(losses.sum(), (hidden_L1H, weight_VH))
    refuse = AssertionError("all rows were gathered for a few")
    with torch.no_grad(), mock.patch("mindspeed_vita.parallel.lm_head.gather_from_sequence_parallel_region", side_effect=refuse):
        logits = language_head.logits(hidden_L1H, weight_VH, torch.tensor(chosen, dtype=torch.int64))
    return {"rows": computed, "losses": losses.detach(), "hidden": grads[0], "weight": grads[1], "logits": logits}


def group_timeouts(layout: Any, *, minutes: float) -> list[float]:
    """Minutes that collectives of Ulysses' two groups may wait, when they are made with a timeout and without one."""
    from datetime import timedelta

    device = torch.device("cpu")
    made = [layout.with_ulysses(2, device, timeout=timedelta(minutes=minutes)), layout.with_ulysses(2, device)]
    groups = [group for each in made for group in (each.ulysses_group, each.ring_group)]
    return [group._get_backend(device).options._timeout.total_seconds() / 60 for group in groups]


def overlapped(layout: Any, *, content: dict[str, Any], folder: str, buckets: dict[str, Optional[int]]) -> int:
    """Trains a recipe without overlap, and with it once for each size of buckets, each run in a folder of its own.

    What is transferred arrives when it is waited for and not before.

    Returns:
        The most buckets that this rank's gradients were cut into.
    """
    from unittest import mock

    from mindspeed_vita.engine import optimizer as optim
    from tests.held_transfers import held

    wrap, groups = optim.wrap_model, [0]

    def wrap_and_count(*arguments: Any) -> Any:
        wrapped = wrap(*arguments)
        groups.extend(len(chunk.bucket_groups) for chunk in optim.chunks_of(wrapped))
        return wrapped

    for name, size in {"never": None, **buckets}.items():
        told = "never" if name == "never" else "always"
        parallel = {**content["parallel"], "overlap_grad_reduce": told, "overlap_param_gather": told}
        named = {**content, "parallel": parallel, "checkpoint": {**content["checkpoint"], "directory": f"{folder}/{name}"}}
        with mock.patch.object(optim, "BUCKET_SIZE", size), mock.patch.object(optim, "wrap_model", wrap_and_count), held():
            run(layout, content=named)
    return max(groups)


def unwaited(layout: Any, *, content: dict[str, Any], forgotten: Optional[str]) -> str:
    """How a run ends that overlaps communication in small buckets and forgets to wait for some of it.

    Args:
        layout: of the pool's call.
        content: the recipe; all ranks are data-parallel ones, so that they end alike.
        forgotten: "reads" of weights without a call of their module, or the "gradients"; None: nothing is forgotten.
    """
    from unittest import mock

    from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup as Group

    from mindspeed_vita.engine import optimizer as optim
    from tests.held_transfers import held

    def drop(group: Any, *arguments: Any, **options: Any) -> None:
        group.grad_reduce_handle, group.param_gather_dispatched = None, False

    places = {"reads": (optim, "wait_before_reads", lambda model: None), "gradients": (Group, "finish_grad_sync", drop)}
    parallel = {**content["parallel"], "overlap_grad_reduce": "always", "overlap_param_gather": "always"}
    mutation = mock.patch.object(*places[forgotten]) if forgotten else nullcontext()
    with mock.patch.object(optim, "BUCKET_SIZE", 2000), mutation, held():
        try:
            run(layout, content={**content, "parallel": parallel})
        except RuntimeError as error:
            return f"{type(error).__name__}: {error}"
    return "done"


def held_packs(layout: Any, *, content: dict[str, Any]) -> int:
    """Trains a step; returns the most packs that this rank held at a time."""
    import weakref
    from unittest import mock

    from mindspeed_vita.engine.faults import FailedSamples

    agree, packs, most = FailedSamples.agree, [], [0]

    def counted(*arguments: Any) -> Any:
        batch = agree(*arguments)
        packs.append(weakref.ref(batch))
        most.append(sum(pack() is not None for pack in packs))
        return batch

    with mock.patch.object(FailedSamples, "agree", counted):
        run(layout, content=content, stop=1)
    return max(most)


def told_failures(layout: Any, *, folder: str) -> list[list[bool]]:
    """What each rank hears of two packs, of which one rank of the first stage could not decode a sample each."""
    from dataclasses import dataclass, replace
    from pathlib import Path

    from mindspeed_vita.engine.faults import FailedSamples

    @dataclass
    class Pack:
        sample_ids: torch.Tensor
        failed: torch.Tensor
        failures: tuple[Any, ...] = ()

        def with_failed(self, failed: torch.Tensor) -> Pack:
            return replace(self, failed=failed)

    record, heard = FailedSamples(Path(folder) / "quarantine.jsonl"), []
    for number in range(2):
        met = torch.tensor([layout.is_first_stage and layout.tile_rank == number, False])
        heard.append(record.agree(Pack(torch.tensor([2 * number, 2 * number + 1]), met), layout, 1).failed.tolist())
    record.settle(learnt=1, step=1, last_step=2)
    assert record.ids == {0, 2}
    return heard


def tokenised(layout: Any, *, content: dict[str, Any], stop: Optional[int] = None, ranks_on_host: int = 0) -> tuple[list[int], int]:
    """Trains a recipe, also with loader processes, and counts what they do.

    Args:
        layout: of the pool's call.
        content: the recipe.
        stop: the step after which the run stops.
        ranks_on_host: as if each host had so many ranks; 0: all of them.

    Returns:
        The numbers of the samples that this rank and its loader processes tokenised, and how many folders of shared packs are left.
    """
    import os
    from tempfile import TemporaryFile
    from unittest import mock

    import torch.distributed as dist

    from mindspeed_vita.data import pack_share
    from mindspeed_vita.data.dataset import PackDataset

    _allow_loader_processes()
    encode = PackDataset.encode
    hosts = {"LOCAL_WORLD_SIZE": str(ranks_on_host)} if ranks_on_host else {}
    with TemporaryFile("a+") as record:  # loader processes have it too

        def noted(self: Any, sample_id: int) -> Any:
            print(sample_id, file=record, flush=True)
            return encode(self, sample_id)

        with mock.patch.object(PackDataset, "encode", noted), mock.patch.dict(os.environ, hosts):
            run(layout, content=content, stop=stop)
        record.seek(0)
        samples = list(map(int, record.read().split()))
    gc.collect()
    dist.barrier()
    return samples, len(pack_share._joined) + len(pack_share._led)


def _allow_loader_processes() -> None:
    """A pool's worker starts loader processes as `vita train` does: by a fork, and although it is the child of another process."""
    import multiprocessing

    multiprocessing.current_process().daemon = False
    multiprocessing.set_start_method("fork", force=True)


def without_room(layout: Any, *, content: dict[str, Any]) -> tuple[str, int]:
    """The message of a run that finds the shared memory full when it begins, and how many folders of shared packs are left."""
    import errno
    from unittest import mock

    from mindspeed_vita.data import pack_faults, pack_share

    with mock.patch.object(pack_faults, "make_pages", side_effect=OSError(errno.ENOSPC, "No space left on device")):
        try:
            run(layout, content=content)
        except ValueError as error:
            return str(error), len(pack_share._joined) + len(pack_share._led)
    return "nothing was refused", 0


def refused(layout: Any, *, content: dict[str, Any], rows: str) -> str:
    """The message that a run ends with whose rows were changed after they were indexed."""
    from pathlib import Path
    from unittest import mock

    import torch.distributed as dist

    from mindspeed_vita.engine import loop

    _allow_loader_processes()
    open_loader = loop.open_loader

    def emptied(*arguments: Any, **options: Any) -> Any:
        if dist.get_rank() == 0:
            path = Path(rows)
            path.write_bytes(b" " * path.stat().st_size)
        dist.barrier()
        return open_loader(*arguments, **options)

    with mock.patch.object(loop, "open_loader", emptied):
        try:
            run(layout, content=content)
        except ValueError as error:
            return str(error)
    return "nothing was refused"
