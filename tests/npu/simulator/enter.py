"""Turns a process into one with simulated NPUs, and says which environment such a process must be started with.

    python -m tests.npu.simulator.enter mindspeed_vita.cli.main train recipe.yaml
    python -m tests.npu.simulator.enter scripts/npu_check.py
"""

from __future__ import annotations

import os
import runpy
import sys
import warnings
from pathlib import Path

import torch

from tests.held_transfers import hold_for_good
from tests.npu.simulator.device import Ascend
from tests.npu.simulator.stubs import PRELOAD

ROOT = Path(__file__).resolve().parents[3]
_chip: list[Ascend] = []


def environment(overlay: Path, stubs: Path) -> dict[str, str]:
    """Variables for a process on simulated NPUs: torch_npu from its own folder, its libraries from the stubs.

    Args:
        overlay: folder with an unpacked torch_npu wheel.
        stubs: folder that stubs.build_stubs filled.
    """
    preload = {} if torch.version.cuda is None else {"LD_PRELOAD": str(stubs / PRELOAD)}
    return {
        **preload,
        "DEVICE": "npu",
        "LD_LIBRARY_PATH": str(stubs),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(overlay), os.environ.get("PYTHONPATH"), str(ROOT)))),
        "TASK_QUEUE_ENABLE": "0",  # torch_npu launches kernels from a thread of its own otherwise
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",  # import torch must not import torch_npu by itself
    }


def enter() -> Ascend:
    """The simulated chip of this process; made and entered by the first call, before torch_npu is used."""
    if not _chip:
        warnings.filterwarnings("ignore", module=r"torch_npu.*")
        import torch_npu  # noqa: F401

        import tests.npu.simulator.attention
        import tests.npu.simulator.infer_attention
        import tests.npu.simulator.rows  # noqa: F401

        _chip.append(Ascend())
        _chip[0].__enter__()
        _hold_transfers()
    return _chip[0]


def _hold_transfers() -> None:
    """What is received arrives when it is waited for and not before, as on a stream of HCCL's own.

    torch_npu's batch_isend_irecv goes to HCCL past the dispatcher, where nothing could be simulated.
    """
    from torch.distributed import distributed_c10d

    hold_for_good()
    distributed_c10d.batch_isend_irecv = torch.distributed.batch_isend_irecv


if __name__ == "__main__":
    enter()
    del sys.argv[0]
    if sys.argv[0].endswith(".py"):
        sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))  # as Python does for a script
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
