"""Which hooks are called before weights are read elsewhere: those of megatron's DDP, and no others."""

from __future__ import annotations

from typing import Any

import torch

from mindspeed_vita.parallel.weights_in_time import wait_before_reads


class Model(torch.nn.Module):
    """Reads the weights of one layer while it calls another."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    def read_elsewhere(self) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
        return [(self.called, self.read), (self.read, self.read)]


def test_hooks_of_ddp_are_called_in_time_and_hooks_of_others_are_left_alone() -> None:
    heard: list[str] = []

    def of_ddp(module: torch.nn.Module, *arguments: Any) -> None:
        heard.append("waited")

    def of_a_plugin(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        heard.append(str(arguments[0].shape))  # there is none where the module is not called

    of_ddp.__module__ = "megatron.core.distributed.distributed_data_parallel"
    model = Model()
    model.read.register_forward_pre_hook(of_ddp)
    model.read.register_forward_pre_hook(of_a_plugin)
    wait_before_reads(model)
    model.called(torch.ones(1, 2))
    assert heard == ["waited"]
