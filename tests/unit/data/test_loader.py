"""The stream of packs depends on one integer only: not on data-parallel size, worker processes or where the run was cut."""

import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import count, islice
from multiprocessing import active_children

import psutil
import pytest
import torch

from mindspeed_vita.data.at_work import AtWork
from mindspeed_vita.data.dealing import RelativeWork
from mindspeed_vita.data.loader import PackLoader, _start_worker
from mindspeed_vita.data.rows import RowReader

WORK = RelativeWork(attention=0.02, tile=30.0)


@pytest.fixture
def data(world, picture, say):
    for number in range(3):
        picture(40 + 9 * number, 30).save(world.folder / f"{number}.png")
    rows = [{"messages": say("x" * (number % 7) + "?", "Yes." * (1 + number % 5))} for number in range(20)]
    rows += [{"messages": say("<image>What?", "A cat."), "images": [f"{number % 3}.png"]} for number in range(6)]
    return world.build(rows, seq_length=96)


def steps(data, *, dp_size, start=0, num_steps, num_workers=0, global_batch=4, **rank):
    """Packs of each step, in the order of the plan, as the given number of ranks reads them."""
    micro_batches = global_batch // dp_size
    streams = []
    for dp_rank in range(dp_size):
        loader = PackLoader(
            data,
            start_pack=start,
            dp_rank=dp_rank,
            dp_size=dp_size,
            micro_batches=micro_batches,
            work=WORK,
            num_workers=num_workers,
            **rank,
        )
        numbers = list(islice(loader.numbers(), num_steps * micro_batches))
        streams.append(list(zip(numbers, islice(loader, num_steps * micro_batches))))
        loader.close()
    packs = []
    for step in range(num_steps):
        dealt = [pack for stream in streams for pack in stream[step * micro_batches : (step + 1) * micro_batches]]
        dealt.sort(key=lambda pack: pack[0])
        first = start + step * global_batch
        assert [number for number, _ in dealt] == list(range(first, first + global_batch)), "each pack of the step once"
        packs += [pack for _, pack in dealt]
    return packs


def assert_same(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right):
        assert torch.equal(one.tokens_T, other.tokens_T) and torch.equal(one.labels_T, other.labels_T)
        assert torch.equal(one.tiles_NCHW, other.tiles_NCHW) and torch.equal(one.sample_ids, other.sample_ids)
        assert torch.equal(one.cu_seqlens, other.cu_seqlens) and one.tile_range == other.tile_range


def test_the_same_packs_at_every_data_parallel_size_over_epochs(data):
    num_steps = data.num_packs(0) // 4 + 2
    one = steps(data, dp_size=1, num_steps=num_steps)
    assert data.locate(len(one) - 1)[0] == 1, "the stream runs into the second epoch"
    for dp_size in (2, 4):
        assert_same(steps(data, dp_size=dp_size, num_steps=num_steps), one)
    first_epoch = torch.cat([pack.sample_ids for pack in one[: data.num_packs(0)]])
    assert sorted(first_epoch.tolist()) == list(range(26)), "every sample once per epoch"


@pytest.mark.parametrize("num_workers", [1, 2])
def test_worker_processes_give_the_same_stream(data, num_workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert_same(steps(data, dp_size=2, num_steps=3, num_workers=num_workers), steps(data, dp_size=2, num_steps=3))
    assert torch.equal(torch.get_rng_state(), before), "workers must not move the model's random numbers"


def test_resume_at_another_size_and_worker_count_goes_on_where_it_stopped(data):
    whole = steps(data, dp_size=1, num_steps=5)
    loader = PackLoader(data, start_pack=0, dp_rank=1, dp_size=2, micro_batches=2, work=WORK)
    list(islice(loader, 4))
    assert loader.packs_consumed == 8
    resumed = steps(data, dp_size=4, start=loader.packs_consumed, num_steps=3, num_workers=1)
    assert_same(resumed, whole[8:])


def test_even_steps_are_the_same_at_every_size_and_after_a_resume(data):
    """The state stays one number: packs consumed."""

    def numbers(dp_size, start=0, num_steps=8):
        told = {"start_pack": start, "dp_size": dp_size, "micro_batches": 4 // dp_size, "work": WORK, "even_steps": 4, "seed": 3}
        streams = [PackLoader(data, dp_rank=rank, **told).numbers() for rank in range(dp_size)]
        return [sorted(number for stream in streams for number in islice(stream, 4 // dp_size)) for _ in range(num_steps)]

    whole = numbers(1)
    assert sorted(sum(whole[:4], [])) == list(range(16)) and sorted(sum(whole[4:], [])) == list(range(16, 32))
    assert any(step != list(range(4 * place, 4 * place + 4)) for place, step in enumerate(whole))
    assert numbers(2) == whole and numbers(4, start=12, num_steps=5) == whole[3:]


def test_iterating_again_goes_on_and_half_a_step_does_not_count(data):
    loader = PackLoader(data, start_pack=4, dp_rank=0, dp_size=1, micro_batches=4)
    first = list(islice(loader, 3))
    assert loader.packs_consumed == 4
    second = list(islice(loader, 2))
    assert loader.packs_consumed == 8
    assert_same(first + second, [data[number] for number in range(4, 9)])


def test_a_group_shares_the_tiles_of_each_pack(data):
    whole = steps(data, dp_size=1, num_steps=2)
    parts = [steps(data, dp_size=1, num_steps=2, group_rank=rank, group_size=2, ring_size=2) for rank in range(2)]
    for pack, left, right in zip(whole, *parts):
        assert torch.equal(torch.cat([left.tiles_NCHW, right.tiles_NCHW]), pack.tiles_NCHW)
        assert left.cp_plan.cp_size == 2 and left.cp_plan.num_tokens == 96


def test_impossible_ranks_are_refused(data):
    with pytest.raises(ValueError, match="rank 2 of 2"):
        PackLoader(data, start_pack=0, dp_rank=2, dp_size=2, micro_batches=1)
    with pytest.raises(ValueError, match="start_pack=-1"):
        PackLoader(data, start_pack=-1, dp_rank=0, dp_size=1, micro_batches=1)


def test_workers_take_nothing_down_that_the_run_left_to_the_collector(data, tmp_path):
    """Such as a process group in a cycle: its threads do not exist in a forked process."""

    class Left:
        def __init__(self):
            self.itself, self.process = self, os.getpid()

        def __del__(self):
            if os.getpid() != self.process:
                (tmp_path / "taken down").touch()

    class Collects(type(data)):
        def pack(self, *arguments, **names):
            gc.collect()
            return super().pack(*arguments, **names)

    data.__class__ = Collects
    gc.disable()  # it must still be there when the worker is forked
    try:
        Left()
        loader = PackLoader(data, start_pack=0, dp_rank=0, dp_size=1, micro_batches=1, work=WORK, num_workers=1)
        next(iter(loader))
        loader.close()
    finally:
        gc.enable()
    assert not (tmp_path / "taken down").exists()


def test_close_ends_the_workers_and_iterating_goes_on(data):
    whole = steps(data, dp_size=1, num_steps=2)
    loader = PackLoader(data, start_pack=0, dp_rank=0, dp_size=1, micro_batches=4, num_workers=2)
    loader.close()
    others = set(active_children())  # of tests that share this process
    packs = iter(loader)
    first = list(islice(packs, 3))
    held = set(active_children()) - others
    assert len(held) == 2
    loader.close()
    assert not any(worker.is_alive() for worker in held) and next(packs, None) is None
    assert_same(first + list(islice(loader, 5)), whole)
    loader.close()


def test_a_worker_is_silent_about_a_run_that_went_away_in_the_middle_of_a_tensor(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr("mindspeed_vita.data.loader.end_by_parent_alone", lambda: None)  # it would change this process for good
    monkeypatch.setattr("mindspeed_vita.data.at_work._own", [])
    _start_worker(AtWork(1), 0)
    for gone in (BrokenPipeError(32, "Broken pipe"), ConnectionResetError(), EOFError()):
        sys.excepthook(type(gone), gone, None)
    assert capsys.readouterr().err == ""
    sys.excepthook(ValueError, ValueError("what is wrong"), None)
    assert "what is wrong" in capsys.readouterr().err


RUN_UNTIL_STOPPED = """
import json, sys
from mindspeed_vita.config.recipe import DataConfig
from mindspeed_vita.data.dataset import build_data
from mindspeed_vita.data.loader import PackLoader
from mindspeed_vita.engine.stopping import Stopped, stop_signals

data = build_data(DataConfig(**json.loads(sys.argv[1])), tokens_per_tile=4, tile_size=28, vocab_size=512)
loader = PackLoader(data, start_pack=0, dp_rank=0, dp_size=1, micro_batches=1, num_workers=2)
try:
    with stop_signals():
        for pack in loader:
            print("pack", flush=True)
except Stopped as stopped:
    loader.close()
    print("stopped", stopped, flush=True)
"""
FINISH_WHEN_TOLD = """
import json, sys
from mindspeed_vita.config.recipe import DataConfig
from mindspeed_vita.data.dataset import build_data
from mindspeed_vita.data.loader import PackLoader
from mindspeed_vita.engine.stopping import stop_signals

data = build_data(DataConfig(**json.loads(sys.argv[1])), tokens_per_tile=4, tile_size=28, vocab_size=512)
loader = PackLoader(data, start_pack=0, dp_rank=0, dp_size=1, micro_batches=1, num_workers=2)
with stop_signals() as stop, stop.finishing_steps():
    left, failed = 12, 0
    for pack in loader:
        print("pack", flush=True)
        failed += len(pack.failures)
        left -= bool(stop.asked)
        if not left:
            break
loader.close()
print("finished", stop.asked, failed, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_process_group_ends_workers_without_a_word(data, number):
    command = [sys.executable, "-c", RUN_UNTIL_STOPPED, json.dumps(asdict(data.settings))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stdout is not None and run.stderr is not None
        assert run.stdout.readline() == "pack\n", run.stderr.read()
        os.killpg(run.pid, number)
        out, err = run.communicate(timeout=60)
    assert (out.splitlines()[-1], err, run.returncode) == (f"stopped {signal.Signals(number).name}", "", 0)


def test_workers_and_decoders_go_on_through_a_stop_signal_to_every_process_of_a_run(data):
    """As torchrun and schedulers send it: the packs of the step that is finished must still come, whole."""
    command = [sys.executable, "-c", FINISH_WHEN_TOLD, json.dumps(asdict(data.settings))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        assert run.stdout is not None and run.stderr is not None
        family: list[psutil.Process] = []
        while len(family) < 4:  # two workers, each with its decoder once it has met a picture
            assert run.stdout.readline() == "pack\n", run.stderr.read()
            family = psutil.Process(run.pid).children(recursive=True)
        for process in family:  # decoders are in sessions of their own
            process.send_signal(signal.SIGUSR1)
            process.send_signal(signal.SIGTERM)
        run.send_signal(signal.SIGTERM)
        out, err = run.communicate(timeout=60)
    assert (out.splitlines()[-1], err.count("\n"), run.returncode) == ("finished 15 0", 1, 0), err
    assert "a second signal ends it at once" in err
    assert not psutil.wait_procs(family, timeout=30)[1]  # decoders end a moment after the run


SAVE_UNTIL_KILLED = """
import hashlib, json, sys
from mindspeed_vita.config.recipe import DataConfig
from mindspeed_vita.data.dataset import build_data
from mindspeed_vita.data.dealing import RelativeWork
from mindspeed_vita.data.loader import PackLoader

settings, start, dp_size, num_workers, prefetch = json.loads(sys.argv[1])
data = build_data(DataConfig(**settings), tokens_per_tile=4, tile_size=28, vocab_size=512)
same = {"start_pack": start, "dp_size": dp_size, "micro_batches": 4 // dp_size, "num_workers": num_workers, "prefetch": prefetch}
same["work"] = RelativeWork(attention=0.02, tile=30.0)
ranks = [PackLoader(data, dp_rank=rank, **same) for rank in range(dp_size)]
numbers, streams = [loader.numbers() for loader in ranks], [iter(loader) for loader in ranks]
while True:
    packs = {}
    for rank in range(dp_size):
        for _ in range(4 // dp_size):
            pack = next(streams[rank])
            content = [pack.tokens_T, pack.labels_T, pack.positions_T, pack.sample_ids, pack.tiles_NCHW]
            packs[next(numbers[rank])] = hashlib.sha256(b"".join(part.numpy().tobytes() for part in content)).hexdigest()
    assert len({loader.packs_consumed for loader in ranks}) == 1
    print(json.dumps([ranks[0].packs_consumed, [packs[number] for number in sorted(packs)]]), flush=True)
"""


def test_a_run_killed_at_dp_1_goes_on_at_4_and_then_at_2_with_every_token_and_tile_the_same(data):
    """The state is the last integer printed, whatever else the killed process had loaded ahead."""
    state, found = 0, []
    for dp_size, num_workers, prefetch in ((1, 2, 3), (4, 1, 1), (2, 0, 2)):
        arguments = json.dumps([asdict(data.settings), state, dp_size, num_workers, prefetch])
        command = [sys.executable, "-c", SAVE_UNTIL_KILLED, arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
            assert run.stdout is not None and run.stderr is not None
            for _ in range(2):
                line = run.stdout.readline()
                assert line, run.stderr.read()
                state, packs = json.loads(line)
                found += packs
            os.killpg(run.pid, signal.SIGKILL)
    assert state == len(found) == 24 > 2 * data.num_packs(0), "over several epochs"

    def digest(pack):
        content = [pack.tokens_T, pack.labels_T, pack.positions_T, pack.sample_ids, pack.tiles_NCHW]
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in content)).hexdigest()

    assert found == [digest(data[number]) for number in range(24)]


def test_the_loader_counts_what_it_waited(data):
    loader = PackLoader(data, start_pack=0, dp_rank=0, dp_size=1, micro_batches=1)
    next(iter(loader))
    assert loader.waited > 0


def test_workers_that_stall_end_the_run_with_a_message(data, monkeypatch):
    first = data.samples_of(0)
    read, rows = RowReader.sample, count()
    monkeypatch.setattr(RowReader, "sample", lambda *row: time.sleep(600) if next(rows) >= len(first) else read(*row))
    loader = PackLoader(data, start_pack=0, dp_rank=0, dp_size=1, micro_batches=1, num_workers=1, longest_wait=2.0)
    packs = iter(loader)
    assert next(packs).sample_ids.tolist() == first.tolist()
    with pytest.raises(ValueError, match=r"no pack came .* within 2 seconds \(data\.loader_seconds\): process \d+ reads ") as caught:
        next(packs)
    assert f"reads {data.where(int(data.samples_of(1)[0]))}. A file system" in str(caught.value)
    assert loader.packs_consumed == 1
