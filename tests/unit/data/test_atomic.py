"""Two hosts that write the same file or folder at a time: neither disturbs the other, and the slower one takes what is there."""

import os
import platform

import numpy as np
import pytest

from mindspeed_vita.data import prepare as preparing
from mindspeed_vita.data.atomic import publish_folder, temporary_beside
from mindspeed_vita.data.packing import Packing
from mindspeed_vita.data.plan_file import measure_packs, open_plan, write_plan

ROWS = [[f"{number}?", "B."] for number in range(9)]


def plan():
    packs = Packing(np.arange(6, dtype=np.uint32), np.array([0, 2, 6]))
    return measure_packs(packs, np.arange(1, 7), np.zeros(6, dtype=int))


def test_equal_process_numbers_on_two_hosts_give_different_names(tmp_path, monkeypatch):
    names = {temporary_beside(tmp_path / "x") for _ in range(3)}
    monkeypatch.setattr(platform, "node", lambda: "other")
    names.add(temporary_beside(tmp_path / "x"))
    assert len(names) == 4 and {name.parent for name in names} == {tmp_path}
    assert any(".other." in name.name for name in names)


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

    def lose(temporary, target, meta):
        monkeypatch.setattr(preparing, "publish_folder", publish_folder)
        other = world.build(rows)
        assert other.folder == target
        publish_folder(temporary, target, meta)

    monkeypatch.setattr(preparing, "publish_folder", lose)
    data = world.build(rows)
    assert data.num_samples == 9 and data[0].sample_ids.numel()
    assert not list(data.folder.parent.glob("*.tmp"))
