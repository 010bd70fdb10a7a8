"""What one rank has to do in a step, in FLOPs, calls and bytes: what the time model divides by a device's constants."""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_vita.planner.device import Device


@dataclass(frozen=True)
class Kernels:
    """Matrix products, or attention kernels, of one part of a step."""

    flops: float
    calls: float


NOTHING = Kernels(0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One collective in one group, over a step."""

    name: str
    """all_reduce, broadcast, all_gather, reduce_scatter, all_to_all, or send."""
    ranks: int
    """Of the group."""
    reach: int
    """Ranks from the first to the last of the group, if ranks fill nodes in their order."""
    calls: float
    bytes: float
    """Of this rank's input, over all calls."""

    def seconds(self, device: Device) -> float:
        """Time on the links: the bytes that a rank sends in the ring algorithm, and what each call takes in addition."""
        others = self.ranks - 1
        sent = {"all_reduce": 2 * others / self.ranks, "all_gather": others, "reduce_scatter": others / self.ranks}
        sent["all_to_all"] = others / self.ranks
        inside = self.reach <= device.node_devices
        rate, start = (device.link_rate, device.link_seconds) if inside else (device.network_rate, device.network_seconds)
        return self.bytes * sent.get(self.name, 1.0) / rate + self.calls * start


@dataclass(frozen=True, kw_only=True)
class Load:
    """A step of one rank. All amounts are of the whole step."""

    matrix: Kernels = NOTHING
    """Of the decoder's layers."""
    attention: Kernels = NOTHING
    """Of the decoder's layers."""
    tower: Kernels = NOTHING
    """Tower and projector, their attention included."""
    head: Kernels = NOTHING
    memory: float = 0.0
    """Bytes that operators between matrix products read and write."""
    tensor: tuple[Transfer, ...] = ()
    """Over tensor parallelism."""
    exchange: tuple[Transfer, ...] = ()
    """Of tiles, and of heads in Ulysses."""
    ring: tuple[Transfer, ...] = ()
    """Keys that travel while attention computes."""
    pipeline: tuple[Transfer, ...] = ()
    """To the next stage and back."""
    replicas: tuple[Transfer, ...] = ()
    """Gradients and weights over data parallelism."""
    optimizer: float = 0.0
    """Bytes that the optimizer reads and writes."""
    idle: float = 0.0
    """Share of the step in which a rank waits for the pipeline, if all stages take equally long."""
    tensor_overlaps: bool = False
    """Whether collectives of tensor parallelism run together with matrix products. This project's engine waits for them."""
    model_flops: float = 0.0
    """Of a step without what is computed again: three times the forward pass, less where nothing is learned."""
