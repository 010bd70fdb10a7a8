"""Checks that only an NPU needs: schemas of the operators that are called, order of the softmax statistics, the fused merge."""

from __future__ import annotations

from pathlib import Path

import torch

from mindspeed_vita.checks.hardware_check.exact import random_tensors, relative_error
from mindspeed_vita.checks.hardware_check.kernels import LIMITS
from mindspeed_vita.checks.hardware_check.report import Report

TABLE = Path(__file__).with_name("torch_npu_schemas.txt")


def schemas() -> dict[str, dict[str, str]]:
    """The operators that are called here, by torch_npu version and name."""
    found: dict[str, dict[str, str]] = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            version = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            version[line.split("(")[0]] = line
    return found


def installed() -> dict[str, torch._C.FunctionSchema]:
    """Schemas of those operators that the imported torch_npu has, by name."""
    names = {name for table in schemas().values() for name in table}
    return {name: getattr(torch.ops.npu, name).default._schema for name in names if hasattr(torch.ops.npu, name)}


def check_schemas(report: Report, version: str, found: dict[str, torch._C.FunctionSchema]) -> None:
    """The installed operators against the table.

    Calls are bound to the oldest version that has an operator (by the tests), so what that one knows must be there. A version that
    stands in the table must also equal its entry.

    Args:
        report: takes the outcome.
        version: of the installed torch_npu.
        found: what `installed` returned.
    """
    known = schemas()
    oldest: dict[str, str] = {}
    for table in known.values():
        oldest = {**table, **oldest}
    lacking = []
    for name, text in oldest.items():
        if name in found:
            missing = _arguments(torch._C.parse_schema(text)) - _arguments(found[name])
            lacking += [f"{name} without {argument}" for argument, _ in sorted(missing)]
        elif name in next(iter(known.values())):
            lacking.append(f"no {name}")
        else:
            report.fact(name, "absent")
    report.check("operators that do not take our calls", len(lacking), 0, ", ".join(lacking))
    if version not in known:
        report.fact(f"torch_npu {version} in the table", f"no; it knows {', '.join(known)}")
        return
    entry = {name: str(torch._C.parse_schema(text)) for name, text in known[version].items()}
    unlike = [name for name, text in entry.items() if str(found.get(name)).removeprefix("npu::") != text]
    report.check(f"operators unlike the table's torch_npu {version}", len(unlike), 0, ", ".join(unlike))


def _arguments(schema: torch._C.FunctionSchema) -> set[tuple[str, str]]:
    return {(argument.name, str(argument.type)) for argument in schema.arguments}


def check_statistics(report: Report, device: torch.device) -> None:
    """Where the softmax statistics of packed attention lie; either order is served, a third one raises."""
    from mindspeed_vita.ops.attention import npu

    report.fact("softmax statistics of packed attention", npu.statistics_order(device))


def check_merge(report: Report, device: torch.device) -> None:
    """npu_ring_attention_update, where torch_npu has it, against plain arithmetic in fp64."""
    from mindspeed_vita.ops.attention import npu

    for width in (64, 80, 128):
        out, other = random_tensors([(65, 5, width), (65, 5, width)], torch.float32)
        lse, other_lse = random_tensors([(65, 5), (65, 5)], torch.float32, seed=1)
        if not npu.can_merge(out):
            report.fact(f"fused merge at width {width}", "not offered; plain torch merges")
            continue
        found = npu.merged(*(x.to(device) for x in (out, 3 * lse, other, 3 * other_lse)))
        weights = torch.stack([3 * lse.double(), 3 * other_lse.double()]).softmax(0).unsqueeze(-1)
        wanted = weights[0] * out.double() + weights[1] * other.double(), torch.logaddexp(3 * lse.double(), 3 * other_lse.double())
        error = max(relative_error(*pair) for pair in zip(found, wanted))
        report.check(f"fused merge at width {width}", error, LIMITS[torch.float32])
