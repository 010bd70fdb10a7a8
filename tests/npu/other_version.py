"""A stand-in for torch_npu of any known version, over host tensors: only that version's operators, arguments and number of outputs.

It needs neither the wheel nor a compiler: calls are bound to the version's schemas, and the simulator's arithmetic answers them.
"""

from __future__ import annotations

from inspect import Parameter, Signature
from types import ModuleType, SimpleNamespace
from typing import Any, Callable

import torch

import tests.npu.simulator.attention
import tests.npu.simulator.infer_attention
import tests.npu.simulator.rows  # noqa: F401
from mindspeed_vita.checks.hardware_check.ascend import schemas
from tests.npu.simulator.device import KERNELS

_LATEST = "2.14.0"
_PLACE = SimpleNamespace(device=SimpleNamespace(type="npu"), _version=0)
"""Where host tensors pretend to lie."""


def signature(schema: torch._C.FunctionSchema) -> Signature:
    """A schema as Python sees it."""
    parameters = []
    for argument in schema.arguments:
        kind = Parameter.KEYWORD_ONLY if argument.kwarg_only else Parameter.POSITIONAL_OR_KEYWORD
        default = argument.default_value if argument.has_default_value() else Parameter.empty
        parameters.append(Parameter(argument.name, kind, default=default))
    return Signature(parameters)


def torch_npu(version: str, bound: list[str]) -> ModuleType:
    """The stand-in.

    Args:
        version: one of the table's.
        bound: takes the name of each operator that is called.
    """
    module = ModuleType("torch_npu")
    chip: Any = SimpleNamespace(honours_softmax_layout=True)
    for name, text in schemas()[version].items():
        schema = torch._C.parse_schema(text)
        latest = signature(torch._C.parse_schema(schemas()[_LATEST].get(name, text)))
        setattr(module, name, _operator(name, schema, latest, chip, bound))
    return module


def _operator(name: str, schema: Any, latest: Signature, chip: Any, bound: list[str]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        arguments = signature(schema).bind(*args, **kwargs)  # TypeError for what this version does not know
        arguments.apply_defaults()
        defaults = {key: parameter.default for key, parameter in latest.parameters.items() if key not in arguments.arguments}
        values = {key: _placed(value) for key, value in {**defaults, **arguments.arguments}.items()}
        outputs = list(KERNELS[name](values, chip))
        bound.append(name)
        count = len(schema.returns)
        outputs = (outputs + [None] * count)[:count]
        return outputs[0] if count == 1 else tuple(outputs)

    return call


def _placed(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.view_as(value)
        value.simulated = _PLACE  # type: ignore[attr-defined]
    return value
