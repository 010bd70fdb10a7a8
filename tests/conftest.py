"""Settings for every test: one thread a process, fixed seeds, and property tests that draw the same cases each time."""

from __future__ import annotations

import atexit
import gc
import os
import random
import shutil
import tempfile
from collections.abc import Iterator

# before torch and numpy are loaded, or they have made their pools
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# transformers copies an export's code there: a folder for each process, as tests run side by side and export under the same names
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="hf_modules_")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
# a GPU in the machine must not change what the CPU tests see
if os.environ.setdefault("DEVICE", "cpu") == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from hypothesis import settings  # noqa: E402

from mindspeed_vita.engine.session import shutdown  # noqa: E402

# one set of worker pools for every folder that needs more than one process
from tests.pools import layout_pool, pools  # noqa: E402, F401

settings.register_profile("vita", deadline=None, derandomize=True)
settings.load_profile("vita")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def groups_end() -> Iterator[None]:
    """The process group of a file's tests ends with them: a later run would borrow it, and leave its own groups in it.

    Groups end with the last object that names them, and models name each other in circles, so garbage is collected too.
    """
    yield
    if dist.is_initialized():
        shutdown()
        gc.collect()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Minutes per folder, so that a change that makes a folder slow is seen."""
    seconds: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                folder = "/".join(report.nodeid.split("/")[:-1][:3])
                seconds[folder] = seconds.get(folder, 0.0) + report.duration
    if sum(seconds.values()) > 60:
        terminalreporter.section("minutes per folder")
        for folder in sorted(seconds, key=lambda name: -seconds[name]):
            terminalreporter.line(f"{seconds[folder] / 60:6.1f}  {folder}")
