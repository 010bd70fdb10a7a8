"""Files read by offset: only so many are open at a time, also in another process."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from mindspeed_vita.data import dataset
from mindspeed_vita.data.open_files import OpenFiles


def num_open(folder) -> int:
    """Files of a folder that this process has open."""
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return sum(os.path.exists(link) and os.readlink(link).startswith(str(folder)) for link in links)


@pytest.fixture
def paths(tmp_path):
    for number in range(20):
        (tmp_path / str(number)).write_bytes(b"abc" + bytes([number]) * 5)
    return [str(tmp_path / str(number)) for number in range(20)]


def test_few_files_stay_open_and_each_is_read_again_after_it_was_closed(paths, tmp_path):
    files = OpenFiles(most_open=4)
    for _ in range(2):
        assert [files.read(path, 2, 3) for path in paths] == [b"c" + bytes([number]) * 2 for number in range(20)]
        assert num_open(tmp_path) == 4
    assert pickle.loads(pickle.dumps(files)).read(paths[0], 0, 3) == b"abc"
    del files
    assert num_open(tmp_path) == 0


def test_threads_may_read_while_others_make_room(paths):
    files = OpenFiles(most_open=2)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda place: files.read(paths[place % 20], 3, 5), range(4000)))
    assert read == [bytes([place % 20]) * 5 for place in range(4000)]


def test_a_data_set_of_many_files_has_few_of_them_open(world, say, monkeypatch):
    monkeypatch.setattr(dataset, "OpenFiles", partial(OpenFiles, 3))
    rows = [[{"messages": say(f"{number}?", "Yes.")}] for number in range(12)]
    world.mixture(many={"data_paths": [world.rows(f"{number}.jsonl", some) for number, some in enumerate(rows)]})
    data = world.build()
    assert [len(data.encode(number).tokens_T) for number in range(12)] == data.index.num_tokens.tolist()
    links = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert sum(link.endswith(".jsonl") and link.startswith(str(world.folder)) for link in links) == 3
