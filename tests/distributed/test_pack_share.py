"""A pack is read and tokenised once per host, whatever the ranks there that need it, and nothing else changes."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml

from mindspeed_vita.config import recipe_to_dict
from mindspeed_vita.data.pack_share import _PREFIX
from mindspeed_vita.engine.lifeline import LOST
from mindspeed_vita.engine.stopping import SAVED
from tests.distributed.test_kill import launch, wait_for_step
from tests.pools import Pools
from tests.tiny_data import TinyData

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
WORK = ("run", "tokenised", "refused", "without_room")
RUN, TOKENISED, REFUSED, WITHOUT_ROOM = (f"tests.distributed.layout_runs:{name}" for name in WORK)
Columns = Callable[..., list[float]]


def folders_of(process: int) -> list[Path]:
    """Folders of shared packs whose lock a process holds."""
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    inodes = {int(lock[5].rpartition(":")[2]) for lock in locks if lock[1] == "FLOCK" and lock[4] == str(process)}
    return [folder for folder in Path("/dev/shm").glob(f"{_PREFIX}*") if folder.stat().st_ino in inodes]


@pytest.mark.parametrize(
    ("sizes", "ranks_on_host"),
    [({"cp": 2, "dp": 2}, 0), ({"cp": 2, "pp": 2}, 0), ({"tp": 2, "cp": 2}, 2)],
    ids=["cp2dp2", "cp2pp2", "tp2cp2-on-two-hosts"],
)
def test_one_rank_per_host_tokenises_a_pack(
    pools: Pools, tiny: TinyData, curve: Columns, tmp_path: Path, sizes: dict[str, int], ranks_on_host: int
) -> None:
    """In training and in held-out evaluations; the curves are those of ranks that each tokenise, and of a run that was cut."""

    def content(name: str, **data: Any) -> dict[str, Any]:
        held_out = {"mixture": tiny.held_out, "every": 3}
        return recipe_to_dict(tiny.recipe(tmp_path / name, train={"steps": 3}, eval=held_out, data=data))

    pool = pools("installed")
    alone = pool.run(TOKENISED, **sizes, content=content("alone", tokenize_once=False))
    shared = pool.run(TOKENISED, **sizes, content=content("shared"), ranks_on_host=ranks_on_host)
    assert not any(left for _, left in shared)
    hosts, replicas = 4 // ranks_on_host if ranks_on_host else 1, sizes.get("dp", 1)
    once = sorted(sample for samples, _ in alone for sample in samples)[:: len(alone) // replicas]
    assert once and sorted(sample for samples, _ in shared for sample in samples) == sorted(once * hosts)
    assert sum(bool(samples) for samples, _ in shared) == hosts * replicas
    processes = content("processes", num_workers=2, prefetch=1)
    first = pool.run(TOKENISED, **sizes, content=processes, stop=2, ranks_on_host=ranks_on_host)
    rest = pool.run(TOKENISED, **sizes, content=processes, ranks_on_host=ranks_on_host)
    for found in (first, rest):
        assert sum(bool(samples) for samples, _ in found) == hosts * replicas and not any(left for _, left in found)
    for column in ("loss", "grad_norm", "eval/loss"):
        expected = curve(tmp_path / "alone", column)
        assert expected and curve(tmp_path / "shared", column) == expected and curve(tmp_path / "processes", column) == expected


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_fault_in_the_data_ends_all_ranks_with_its_message(pools: Pools, tiny: TinyData, tmp_path: Path, num_workers: int) -> None:
    copy = tmp_path / "data"
    shutil.copytree(tiny.folder, copy, ignore=shutil.ignore_patterns("vita_index"))
    for mixture in copy.glob("*.yaml"):
        mixture.write_text(mixture.read_text().replace(str(tiny.folder), str(copy)))
    content = recipe_to_dict(TinyData(copy).recipe(tmp_path / "run", data={"num_workers": num_workers}))
    told = pools("installed").run(REFUSED, cp=2, content=content, rows=str(copy / "data.jsonl"))
    lines = [message.strip().splitlines()[-1] for message in told]
    assert lines[0] == lines[1] and "data.jsonl" in lines[0], told


def test_a_full_shared_memory_is_told_on_all_ranks_with_the_remedy(pools: Pools, tiny: TinyData, tmp_path: Path) -> None:
    """Two ranks that make a folder for their packs, and two that would use it."""
    told = pools("installed").run(WITHOUT_ROOM, cp=2, dp=2, content=recipe_to_dict(tiny.recipe(tmp_path / "run")))
    assert len({message for message, _ in told}) == 1 and not any(left for _, left in told), told
    assert "has no room for the packs" in told[0][0] and "data.tokenize_once=false" in told[0][0]


def test_the_end_of_the_rank_that_reads_ends_the_others_with_one_message(
    tiny: TinyData, tmp_path: Path, curve: Columns, pools: Pools
) -> None:
    """Killed while loader processes read ahead; the same command goes on, is stopped by a signal, and goes on again."""

    def content(name: str, **data: Any) -> dict[str, Any]:
        recipe = recipe_to_dict(tiny.recipe(tmp_path / name, train={"steps": 40}, data=data, checkpoint={"save_every": 2}))
        return {**recipe, "parallel": {**recipe["parallel"], "cp": 2}}

    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content("killed", num_workers=2)))
    ranks = launch(path)
    wait_for_step(ranks, tmp_path / "killed", 3)
    used = folders_of(ranks[0].pid)
    assert len(used) == 1, "nothing was shared"
    ranks[0].kill()
    errors = [process.communicate(timeout=60)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [-signal.SIGKILL, LOST], errors
    assert "\n".join(errors).count("vita: error:") == 1 and "rank 0" in errors[1], errors
    assert not used[0].exists()
    ranks = launch(path)
    wait_for_step(ranks, tmp_path / "killed", 5)
    used = folders_of(ranks[0].pid)
    ranks[1].terminate()
    errors = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [SAVED, SAVED], errors
    assert not used[0].exists() and len(curve(tmp_path / "killed")) < 40
    pools("installed").run(RUN, cp=2, content=content("killed"))
    pools("installed").run(RUN, cp=2, content=content("straight", tokenize_once=False))
    assert curve(tmp_path / "killed") == curve(tmp_path / "straight")
