"""Where in the program an operator was called: part of the step, phase, module, and line of code."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Optional

import torch

import mindspeed_vita

_OURS = f"{Path(mindspeed_vita.__file__).parent}/"
_PASSED_BY = (f"{_OURS}planner/", f"{_OURS}platform/redirect")
"""What stands between the caller and the operator."""

PARTS = (
    ("models/vision/", "tower"),
    ("models/projector/", "tower"),
    ("ops/normalize", "tower"),
    ("ops/attention/", "attention"),
    ("models/core_attention", "attention"),
    ("parallel/ring", "ring"),
    ("parallel/tile_exchange", "exchange"),
    ("parallel/all_to_all", "exchange"),
    ("parallel/ulysses", "exchange"),
    ("models/splice", "exchange"),
    ("parallel/lm_head", "head"),
    ("ops/cross_entropy", "head"),
    ("engine/objective", "head"),
    ("megatron/core/pipeline_parallel/p2p_communication", "pipeline"),
    ("megatron/core/optimizer/", "optimizer"),
    ("megatron/core/distributed/param_and_grad_buffer", "gradients"),
    ("megatron/core/distributed/finalize_model_grads", "gradients"),
)
"""Files, and the part of a step that their work belongs to. Everything else in the model is "layers"."""
LAYERS = "layers"
HOST = "platform/host_copies"
"""Start of the files whose tensors lie in the host's memory."""
_FIRST = "tower"
"""A part that holds whatever its code calls: the tower's attention is the tower's."""
_RECOMPUTING = ("torch/utils/checkpoint.py", "megatron/core/tensor_parallel/random.py", "mindspeed_vita/models/made_again.py")
_ENGINE = "torch/autograd/graph.py"


@dataclass(frozen=True)
class Place:
    """Where an operator was called."""

    part: str
    """weights, gradients, optimizer, inputs, tower, attention, ring, exchange, head, pipeline, or layers."""
    phase: str
    """build, forward, backward, recompute, or update."""
    module: str
    """Dotted name of the module; empty outside of modules."""
    line: str
    """File and line of ours or megatron's that called it. In the backward pass of a torch operator: of its forward pass."""


@dataclass(frozen=True)
class _File:
    name: str
    """Short name where the file is ours or megatron's, else empty."""
    part: str
    engine: bool
    recomputing: bool


@cache
def _file(path: str) -> _File:
    name = ""
    if path.startswith(_OURS) and not path.startswith(_PASSED_BY):
        name = path[len(_OURS) :]
    elif "/megatron/core/" in path:
        name = path[path.rindex("/megatron/core/") + 1 :]
    part = next((part for start, part in PARTS if name.startswith(start)), "") if name else ""
    return _File(name, part, path.endswith(_ENGINE), path.endswith(_RECOMPUTING))


class Places:
    """Finds the place of the operator that is being called. One instance follows one run."""

    def __init__(self) -> None:
        self.setup = ""
        """Part of everything that is made now, while the model, its gradients and its optimizer are built; empty during a step."""
        self._names: dict[int, str] = {}
        self._inside: list[str] = []
        self._of_node: dict[int, Place] = {}
        self._hooks: list[Any] = []

    def follow(self, model: torch.nn.Module) -> None:
        """Names the modules of a model, and follows which of them runs."""
        self._names = {id(module): name for name, module in model.named_modules()}
        enter, leave = (
            torch.nn.modules.module.register_module_forward_pre_hook(self._enter),
            torch.nn.modules.module.register_module_forward_hook(self._leave),
        )
        self._hooks = [enter, leave]

    def stop(self) -> None:
        """Takes the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _enter(self, module: torch.nn.Module, inputs: Any) -> None:
        self._inside.append(self._names.get(id(module), ""))

    def _leave(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._inside.pop()

    def here(self) -> Place:
        """The place of the caller of the operator."""
        in_backward = torch._C._current_graph_task_id() != -1
        line, part, recomputes = _walk(sys._getframe(2), in_backward)
        if self.setup:
            return Place(self.setup, "build", "", line)
        if in_backward and not recomputes:
            node = torch._C._current_autograd_node()
            forward = self._of_node.get(node._sequence_nr()) if node is not None else None
            if forward is None:
                return Place(part or LAYERS, "backward", "", line)
            # a torch operator's backward pass has no code of ours of its own
            return Place(part or forward.part, "backward", forward.module, line or forward.line)
        module = self._inside[-1] if self._inside else ""
        if part in ("optimizer", "gradients") and not in_backward:
            return Place(part, "update", module, line)
        place = Place(part or LAYERS, "recompute" if in_backward else "forward", module, line)
        self._of_node[torch.autograd._get_sequence_nr() - 1] = place
        return place


def _walk(frame: Optional[FrameType], in_backward: bool) -> tuple[str, str, bool]:
    """Line, part, and whether a checkpoint's forward pass runs again, from a frame outwards."""
    line = part = ""
    recomputes = False
    while frame is not None:
        file = _file(frame.f_code.co_filename)
        if in_backward and file.engine:
            break
        if file.name and not line:
            line = f"{file.name}:{frame.f_lineno}"
        if file.part and (not part or file.part == _FIRST):
            part = file.part
        recomputes |= in_backward and file.recomputing
        frame = frame.f_back
    return line, part, recomputes
