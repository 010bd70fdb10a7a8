"""Two hosts that write the same file or folder at a time: neither disturbs the other, and the slower one takes what is there."""

import os

import numpy as np
import pytest

from mindspeed_vita.data import prepare as preparing
from mindspeed_vita.data.packing import Packing
from mindspeed_vita.data.plan_file import measure_packs, open_plan, write_plan

ROWS = [[f"{number}?", "B."] for number in range(9)]


def plan():
    packs = Packing(np.arange(6, dtype=np.uint32), np.array([0, 2, 6]))
    return measure_packs(packs, np.arange(1, 7), np.zeros(6, dtype=int))


def test_who_comes_second_takes_the_folder_that_is_there(tmp_path):
    write_plan(tmp_path / "epoch", plan())
    before = os.stat(tmp_path / "epoch").st_ino
    write_plan(tmp_path / "epoch", plan())
    assert os.stat(tmp_path / "epoch").st_ino == before and [path.name for path in tmp_path.iterdir()] == ["epoch"]
    assert open_plan(tmp_path / "epoch").tokens.tolist() == [3, 18]


def test_a_folder_that_is_not_whole_is_no_result(tmp_path):
    (tmp_path / "epoch").mkdir()
    (tmp_path / "epoch" / "draws").write_bytes(b"")
    with pytest.raises(OSError, match="epoch"):
        write_plan(tmp_path / "epoch", plan())
    assert [path.name for path in tmp_path.iterdir()] == ["epoch"], "nothing is left behind"


def test_a_mixture_prepared_by_two_at_a_time(world, say, monkeypatch):
    """The other process finishes between this one's look and its rename."""
    rows = [{"messages": say(*texts)} for texts in ROWS]
    describe = preparing._describe

    def lose(folder, *arguments):
        describe(folder, *arguments)
        monkeypatch.setattr(preparing, "_describe", describe)
        built.append(world.build(rows))

    built = []
    monkeypatch.setattr(preparing, "_describe", lose)
    data = world.build(rows)
    assert built[0].folder == data.folder
    assert data.num_samples == 9 and data[0].sample_ids.numel()
    assert not list(data.folder.parent.glob("*.tmp"))
