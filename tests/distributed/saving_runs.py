"""What workers do for test_saving.py: a run that saves as it does, and once more as runs saved before ranks wrote their own ranges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional
from unittest import mock

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.distributed.layout_runs import run


@dataclass(frozen=True)
class Sent:
    """A tensor that a rank gave to a collective, or to a peer."""

    operator: str
    dtype: torch.dtype
    size: int
    """Bytes."""


class Collectives(TorchDispatchMode):
    """Records what this rank hands to process groups, objects as the bytes that they become."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Sent] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            self.sent += [Sent(func.name(), tensor.dtype, tensor.numel() * tensor.itemsize) for tensor in tensors]
        return func(*args, **(kwargs or {}))


def save_both_ways(layout: Any, *, content: dict[str, Any], gathered: str, steps: int = 2) -> tuple[list[Sent], list[Sent]]:
    """Trains a recipe and saves its last step; writes the same tensors, gathered, into another folder.

    Returns:
        What this rank handed to process groups while it saved, and while it gathered.
    """
    from mindspeed_vita.engine.loop import _Run

    save, saving, gathering = _Run._save, Collectives(), Collectives()

    def both(trained: _Run) -> None:
        with saving:
            save(trained)
            trained._finish_save()
        with gathering:
            write_gathered(trained.optimizer, trained.model.module, Path(gathered))

    with mock.patch.object(_Run, "_save", both):
        run(layout, content=content, stop=steps)
    return saving.sent, gathering.sent


def write_gathered(optimizer: Any, model: torch.nn.Module, folder: Path) -> None:
    """Weights by their first replica, and each parameter's optimizer state put together on one rank: the way of version 0.1.0."""
    from megatron.core import parallel_state

    from mindspeed_vita.checkpoint.native import shards
    from mindspeed_vita.platform import megatron_compat

    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    every: Any = model
    weights = {
        name: entry
        for name, entry in every.sharded_state_dict(metadata=megatron_compat.checkpoint_metadata()).items()
        if not name.endswith("_extra_state")
    }
    for part, entries in (("weights", dict(weights)), ("optimizer", dict(_gathered(optimizer, model, weights, group)))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        shards.write(folder / part / f"rank_{dist.get_rank():05d}.safetensors", shards.owned_pieces(entries))
    dist.barrier()


def _gathered(optimizer: Any, model: torch.nn.Module, weights: dict[str, Any], group: Any) -> Iterator[tuple[str, Any]]:
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for index, (name, parameter) in enumerate(trainable):
        owner = index % group.size()
        where = optimizer.model_param_group_index_map.get(parameter)
        for kind in ("exp_avg", "exp_avg_sq") if parameter.dtype == torch.float32 else ("param", "exp_avg", "exp_avg_sq"):
            flat = torch.zeros(parameter.numel())
            if where is not None:
                main = optimizer.optimizer.param_groups[where[0]]["params"][where[1]]
                span = optimizer._get_model_param_range_map(parameter)["param"]
                flat[span.start : span.end] = main.detach() if kind == "param" else optimizer.optimizer.state[main][kind]
            dist.reduce(flat, dst=dist.get_global_rank(group, owner), group=group)
            if group.rank() == owner:
                entry = weights[name]
                changes: dict[str, Any] = {"key": f"{kind}.{entry.key}", "data": flat.view(parameter.shape)}
                if hasattr(entry, "dtype"):
                    changes["dtype"] = flat.dtype
                yield f"{kind}.{name}", replace(entry, replica_id=(*entry.replica_id[:-1], 0), **changes)


def behind(layout: Any, *, folder: str, fault: str) -> tuple[bool, str, int]:
    """Saves in the background while this rank goes on with collectives of its own; one rank writes late.

    Args:
        layout: of the pool's call.
        folder: of the run.
        fault: what happens: "" (nothing), "disk" (the last rank cannot write), "memory" (nor copy), "taken" (another run has the folder
            when the first rank wants to publish).

    Returns:
        Whether the step was visible before any rank asked for it, how the save ended, and how many keys it left in the store.
    """
    import threading
    import time

    from mindspeed_vita.checkpoint.native import atomic
    from mindspeed_vita.checkpoint.native.writer import Digests, StepWriter
    from mindspeed_vita.config import recipe_from_dict

    last, gate = dist.get_rank() == dist.get_world_size() - 1, threading.Event()

    def write(temp: Path) -> Digests:
        assert gate.wait(60)
        if fault == "disk" and last:
            raise OSError(28, "No space left on device")
        if fault == "memory" and last:
            raise MemoryError("no room for a copy")
        return {}

    def allowed() -> None:
        if fault == "taken":
            raise ValueError("another run has the folder")

    store = dist.distributed_c10d._get_default_store()
    state, rng = {"step": 1}, {"cpu": torch.tensor([dist.get_rank()])}
    writer = StepWriter(Path(folder), 1, recipe_from_dict({}), write, state=state, rng=rng, background=True, allowed=allowed)
    if not last:
        gate.set()
    for _ in range(20):  # as training does
        dist.all_reduce(torch.ones(8))
    assert not writer.written() and not atomic.complete_steps(Path(folder)), "published before all had written"
    dist.barrier()
    gate.set()
    deadline = time.monotonic() + 60
    while not writer.written() and time.monotonic() < deadline:
        time.sleep(0.01)
    seen = bool(atomic.complete_steps(Path(folder)))
    try:
        outcome = str(writer.finish().name)
    except (OSError, ValueError) as error:
        outcome = f"{type(error).__name__}: {error}"
    dist.barrier()
    keys = [f"vita/mail/1/{end}" for end in (*range(dist.get_world_size()), "answer", "readers")]
    return seen, outcome, sum(store.check([key]) for key in keys)


def sending(layout: Any, *, content: dict[str, Any], stop: Optional[int] = None, refusals: int = 0) -> list[str]:
    """Trains a recipe that has a store, which refuses the first files of the last rank.

    Returns:
        what was said about the store; on the first rank.
    """
    from mindspeed_vita.engine import loop, uploading
    from mindspeed_vita.files.stores import Store, StoreError

    lines: list[str] = []
    plain, left = Store.send, [refusals if dist.get_rank() == dist.get_world_size() - 1 else 0]

    def send(store: Store, path: Path, name: str) -> None:
        if left[0]:
            left[0] -= 1
            raise StoreError("slow down")
        plain(store, path, name)

    class Uploads(uploading.Uploads):
        def __init__(self, settings: Any, say: Any) -> None:
            super().__init__(settings, lambda line: (lines.append(line), say(line)))

    with (
        mock.patch.object(Store, "send", send),
        mock.patch.object(loop, "Uploads", Uploads),
        mock.patch.object(uploading, "FIRST_PAUSE", 0.01),
    ):
        run(layout, content=content, stop=stop)
    return lines
