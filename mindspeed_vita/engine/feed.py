"""Between the recipe and data/: the data set and this rank's endless packs."""

from __future__ import annotations

import os
import platform
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional, TypeVar

import torch.distributed as dist

from mindspeed_vita.checkpoint.native.ranks import gather
from mindspeed_vita.config import Recipe
from mindspeed_vita.parallel.layout import ParallelLayout

if TYPE_CHECKING:
    from mindspeed_vita.data.dataset import PackDataset
    from mindspeed_vita.data.loader import PackLoader
    from mindspeed_vita.data.pack_share import PackShare

_T = TypeVar("_T")
_INDEXING = timedelta(days=7)
"""Longest wait for the first rank's index and plans; if it fails or dies, the others hear of it at once or from torchrun."""


def open_dataset(recipe: Recipe, layout: ParallelLayout) -> PackDataset:
    """The packed data set of a recipe. The first rank makes what is missing of index and plans, before any step; the others wait.

    Collective over the world. Unless data.tokenize_once is false, the ranks of a host that need the same packs agree on one that reads.

    Raises:
        ValueError: a file, the tokenizer or a setting does not fit, or the folder of the index cannot be written.
    """
    from mindspeed_vita.data.dataset import build_data
    from mindspeed_vita.data.indexing import ProgressLines

    # loader processes read ahead
    ahead = (recipe.data.prefetch * recipe.data.num_workers + 1 + recipe.train.even_steps) * recipe.train.global_batch

    def build() -> PackDataset:
        return build_data(
            recipe.data,
            tokens_per_tile=recipe.model.tokens_per_tile,
            tile_size=recipe.model.vision.tile_size,
            vocab_size=recipe.model.language.vocab_size,
            normalization=recipe.model.vision.normalization,
            cp_size=layout.cp_size,
            tp_size=layout.tp_size,
            num_packs=recipe.train.steps * recipe.train.global_batch + ahead,
            progress=ProgressLines() if dist.get_rank() == 0 else None,
        )

    dataset = first_rank_first(build)
    if recipe.data.tokenize_once:
        dataset.share = share_packs(layout)
    return dataset


def share_packs(layout: ParallelLayout) -> Optional[PackShare]:
    """Which rank of this host reads the packs that this rank needs. Collective over the world.

    Ranks with the same dp_rank need the same packs, whatever their tp, cp and pp ranks. The rank that reads is on the earliest pipeline
    stage of the host: a schedule comes to each pack there first, so it never waits for a rank that waits for it.

    Returns:
        None where no other rank of this host needs the same packs.

    Raises:
        ValueError: the shared memory of a host has no room. All ranks raise it.
    """
    from mindspeed_vita.data.pack_share import PackShare, remove_folder

    if dist.get_world_size() == layout.dp_size:
        return None
    me = dist.get_rank()
    places = gather((_host(), layout.dp_rank))
    stages = gather(layout.pp_rank)
    members = sorted((rank for rank, place in enumerate(places) if place == places[me]), key=lambda rank: (stages[rank], rank))
    leader = members[0]
    folder = _folder_of(leader, needed=leader == me and len(members) > 1)
    # two containers may have one name, and a shared memory each
    reached = gather(len(members) > 1 and folder.is_dir())
    followers = tuple(rank for rank in members[1:] if reached[rank])
    if followers and me in (leader, *followers):
        return PackShare(folder=folder, rank=me, leader=leader, followers=followers)
    if leader == me and len(members) > 1:
        remove_folder(folder)
    return None


def _folder_of(leader: int, *, needed: bool) -> Path:
    """The folder that a rank made for the packs that it reads; `needed`: this rank makes one. Collective. Raises as share_packs."""
    from mindspeed_vita.data.pack_share import make_folder, remove_folder

    made, problem = "", ""
    try:
        made = str(make_folder()) if needed else ""
    except ValueError as error:
        problem = str(error)
    told = gather((made, problem))
    problems = [problem for _, problem in told if problem]
    if problems:
        if made:
            remove_folder(Path(made))
        raise ValueError(problems[0])
    return Path(told[leader][0])


def _host() -> tuple[str, int]:
    """The host of this process: its name, and the number of torchrun's node, where torchrun started the process."""
    rank, on_node = dist.get_rank(), int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    return platform.node(), rank // on_node if on_node else 0


def first_rank_first(work: Callable[[], _T]) -> _T:
    """Runs work on rank 0, then on all others; where rank 0 fails, all fail with its message. Collective over the world.

    A wait on the process group's store and not a barrier: collectives time out long before a large data set is indexed.
    """
    if dist.get_world_size() == 1:
        return work()
    store = dist.distributed_c10d._get_default_store()
    # counted in the store, as a process may have been in other groups before
    key = f"vita/data/{store.add(f'vita/data/turns/{dist.get_rank()}', 1)}"
    if dist.get_rank() == 0:
        outcome = "stopped"
        try:
            result = work()
            outcome = ""
            return result
        except (ValueError, OSError) as error:
            outcome = str(error) or type(error).__name__
            raise
        finally:
            store.set(key, outcome)
    store.wait([key], _INDEXING)
    outcome = store.get(key).decode()
    if outcome:
        raise ValueError(outcome)
    return work()


def open_loader(dataset: PackDataset, recipe: Recipe, layout: ParallelLayout, *, start_pack: int) -> PackLoader:
    """This rank's packs from a pack number on, without end. Every rank iterates, whatever its pipeline stage."""
    from mindspeed_vita.data.batch import PackedBatch
    from mindspeed_vita.data.dealing import relative_work
    from mindspeed_vita.data.loader import PackLoader
    from mindspeed_vita.parallel.shard import route_arguments

    routing = route_arguments(recipe, layout)
    return PackLoader(
        dataset,
        start_pack=start_pack,
        dp_rank=layout.dp_rank,
        dp_size=layout.dp_size,
        micro_batches=recipe.train.global_batch // layout.dp_size,
        work=relative_work(recipe.model),
        even_steps=recipe.train.even_steps,
        seed=recipe.data.seed,
        group_rank=layout.tile_rank,
        group_size=layout.tile_group_size,
        ring_size=layout.ring_size,
        node_size=layout.node_size,
        decode=layout.is_first_stage,
        finish=partial(PackedBatch.with_route, **routing) if layout.is_first_stage else None,
        share=dataset.share,
        num_workers=recipe.data.num_workers,
        prefetch=recipe.data.prefetch,
        longest_wait=recipe.data.loader_seconds,
    )
