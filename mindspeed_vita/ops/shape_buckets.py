"""Few distinct numbers of rows, for devices that prepare every kernel anew for each new shape.

The added rows have loss and gradient 0; results differ only by the order of sums.
"""

from __future__ import annotations

import torch

ROWS = 256
"""Supervised rows come in multiples of this on an NPU. It divides the usual chunk of logits (1,024), so chunks have few sizes too."""
_PREPARES_EACH_SHAPE = {"npu"}
"""CANN keeps what it prepared by operator, shapes and lists of integers, up to ACLNN_CACHE_LIMIT entries."""


def bucketed_rows(wanted_T: torch.Tensor, device_type: str) -> torch.Tensor:
    """Places of the wanted rows. On an NPU others follow, as many as fill a multiple of ROWS; where there are too few, all of them.

    The added rows are distinct and come last. So a chunk of rows that was full keeps its content, and nothing is added up twice.

    Args:
        wanted_T: bool on the host, the rows that a result depends on.
        device_type: "npu", "cuda" or "cpu": where the rows will be used.

    Returns:
        int64 on the host. Without a wanted row: empty.
    """
    wanted_Q = wanted_T.nonzero().squeeze(1)
    missing = -len(wanted_Q) % ROWS
    if device_type not in _PREPARES_EACH_SHAPE or not len(wanted_Q) or not missing:
        return wanted_Q
    return torch.cat([wanted_Q, (~wanted_T).nonzero().squeeze(1)[:missing]])
