"""Checks that only an NPU needs: schemas of the operators that are called, order of the softmax statistics, the fused merge."""

from __future__ import annotations

from pathlib import Path

import torch

from mindspeed_vita.engine.hardware_check.exact import random_tensors, relative_error
from mindspeed_vita.engine.hardware_check.kernels import LIMITS
from mindspeed_vita.engine.hardware_check.report import Report

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


def check_schemas(report: Report, version: str) -> None:
    """The installed operators against those of the nearest known version that is not newer; a difference is stated, and fails."""
    known = schemas()
    nearest = max((one for one in known if _numbers(one) <= _numbers(version)), key=_numbers, default=min(known, key=_numbers))
    different = []
    for name, schema in known[nearest].items():
        operator = getattr(torch.ops.npu, name, None)
        installed = "absent" if operator is None else str(operator.default._schema).removeprefix("npu::")
        if operator is None or installed != str(torch._C.parse_schema(schema)):
            different.append(name)
            report.fact(f"{name} differs from torch_npu {nearest}", installed)
    report.check(f"operators unlike those of torch_npu {nearest}", len(different), 0, ", ".join(different))


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


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
