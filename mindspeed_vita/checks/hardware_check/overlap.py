"""How much of a ring's transfers hides behind attention, on the devices of one host; the processes run this file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Optional

import numpy as np
import torch
import torch.distributed as dist

from mindspeed_vita.checks.hardware_check.exact import random_tensors
from mindspeed_vita.checks.hardware_check.report import Report
from mindspeed_vita.checks.hardware_check.speed import HEADS, KV_HEADS, WIDTH, seconds
from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.engine.session import distributed
from mindspeed_vita.ops.attention import Heads, choose
from mindspeed_vita.parallel.ring import ring_backward, ring_forward
from mindspeed_vita.parallel.ring_exchange import Channel, GroupKeyExchange, KeyExchange, Transfer
from mindspeed_vita.platform import Platform, get_platform
from mindspeed_vita.sharding import make_cp_plan
from mindspeed_vita.sharding.ring_steps import RingStep, Round

_LONGEST = 120
"""Seconds that the processes may take."""


def measure_overlap(report: Report, platform: Platform, *, devices: int, small: bool) -> None:
    """A ring over the devices of this host, next to its attention alone and its transfers alone."""
    if devices < 2:
        report.fact("ring overlap", "not measured: it needs two devices, and this host has one (--devices)")
        return
    tokens = (256 if small else 16384) * devices
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(devices), "-m", __name__, str(tokens)]
    environment = {**os.environ, "DEVICE": platform.name}
    found = json.loads(_output(command, environment).splitlines()[-1])
    for direction, parts in found.items():
        ring, attention, transfers = parts["ring"], parts["attention"], parts["transfers"]
        hidden = max(0.0, min(1.0, (attention + transfers - ring) / transfers))
        name = f"ring of {devices}, {tokens:,} tokens, {direction}"
        text = f"{ring * 1000:.2f} ms, {ring / attention:.3f} of its attention alone"
        report.fact(name, f"{text}; {hidden:.0%} of {transfers * 1000:.2f} ms of transfers hidden")
        report.measured(f"{name}, over its attention alone", ring / attention)
        report.measured(f"{name}, hidden share of transfers", hidden)


def _output(command: list[str], environment: dict[str, str]) -> str:
    """What a command prints; all of its processes are gone afterwards.

    Raises:
        RuntimeError: it fails, or takes too long.
    """
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            output, errors = process.communicate(timeout=_LONGEST)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun then ends its workers
            raise RuntimeError(f"{' '.join(command[1:])} did not end in {_LONGEST} s") from None
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} ended with {process.returncode}: {errors[-600:]}")
    return output


class _NoTransfer:
    """Keys of the right shape are there at once, and gradients go nowhere: attention alone."""

    max_pending: Optional[int] = None
    gradients = torch.float32

    def cross(self, kv_2TGD: torch.Tensor, rounds: tuple[Round, ...], number: int) -> Transfer:
        """See ring_exchange.KeyExchange."""
        count = rounds[number].num_held if number < len(rounds) else 0
        return Transfer(kv_2TGD.new_zeros(2, count, *kv_2TGD.shape[2:]))

    def fetch(self, held_2HGD: torch.Tensor, ring: tuple[RingStep, ...], distance: int) -> Transfer:
        """See ring_exchange.KeyExchange."""
        count = ring[distance].num_received if distance < len(ring) else 0
        return Transfer(held_2HGD.new_zeros(2, count, *held_2HGD.shape[2:]))

    def give_back(self, dkv: torch.Tensor, step: RingStep, distance: int) -> Transfer:
        """See ring_exchange.KeyExchange."""
        return Transfer(dkv.new_zeros(2, len(step.send), *dkv.shape[2:]))

    def cross_back(self, dkv: torch.Tensor, held: Round, number: int) -> Transfer:
        """See ring_exchange.KeyExchange."""
        return Transfer(dkv.new_zeros(2, len(held.send), *dkv.shape[2:]))


def _times(platform: Platform, tokens: int, group: Any, rank: int, size: int) -> dict[str, dict[str, float]]:
    """Seconds of this rank."""
    plan = make_cp_plan(np.array([0, tokens]), size)
    steps, own, device = plan.steps(rank), tokens // size, platform.device
    shapes: list[tuple[int, ...]] = [(own, HEADS, WIDTH), (2, own, KV_HEADS, WIDTH), (own, HEADS, WIDTH)]
    query, keys, grad = (x.to(device) for x in random_tensors(shapes, torch.bfloat16))
    kernels, scale = choose(Heads.of(query)), WIDTH**-0.5
    out, lse = ring_forward(query, keys, steps, scale, GroupKeyExchange(Channel(group)), kernels)

    def forward(exchange: KeyExchange) -> None:
        ring_forward(query, keys, steps, scale, exchange, kernels)

    def backward(exchange: KeyExchange) -> None:
        ring_backward(grad, query, keys, out, lse, steps, scale, exchange, kernels)[1].collect()

    def transfers(back: bool) -> None:
        exchange = GroupKeyExchange(Channel(group))
        for distance in range(1, len(steps.ring)):
            received = exchange.fetch(keys, steps.ring, distance).wait()
            if back:
                exchange.give_back(received.float(), steps.ring[distance], distance).wait()

    def timed(work: Callable[[], None]) -> float:
        dist.barrier()
        return seconds(work, platform, 3)

    def parts(run: Callable[[KeyExchange], None], back: bool) -> dict[str, float]:
        return {
            "ring": timed(partial(run, GroupKeyExchange(Channel(group)))),
            "attention": timed(partial(run, _NoTransfer())),
            "transfers": timed(partial(transfers, back)),
        }

    return {"forward": parts(forward, False), "backward": parts(backward, True)}


def main(tokens: int) -> None:
    """One process of the ring; the first prints the times of the slowest rank as a line of JSON."""
    platform = get_platform()
    size = int(os.environ["WORLD_SIZE"])
    recipe = recipe_from_dict({"parallel": {"cp": size}, "train": {"global_batch": 1}, "data": {"seq_length": 2 * size}})
    with distributed(recipe, platform) as layout:
        everyone: list[Any] = [None] * size
        dist.all_gather_object(everyone, _times(platform, tokens, layout.ring_group, layout.ring_rank, size))
        if dist.get_rank() == 0:
            slowest = {name: {part: max(rank[name][part] for rank in everyone) for part in parts} for name, parts in everyone[0].items()}
            print(json.dumps(slowest), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
