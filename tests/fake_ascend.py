"""Pieces of an Ascend node that are only files: npu-smi, CANN's and the driver's version files, Python packages of a version."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

NPU_SMI = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 25.5.0                   Version: 25.5.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B2               | OK            | 93.2        45                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3388 / 65536         |
+===========================+===============+====================================================+
| 1     910B2               | OK            | 91.0        44                0    / 0             |
| 0                         | 0000:01:00.0  | 0           0    / 0          3389 / 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| No running processes found in NPU 0                                                            |
+===========================+===============+====================================================+
"""


def make_program(path: Path, body: str) -> None:
    """A shell script that can be started."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def make_package(site: Path, name: str, version: str, source: str = "") -> None:
    """A package that Python imports from `site`, with the metadata of an installed one."""
    (site / name).mkdir(parents=True, exist_ok=True)
    (site / name / "__init__.py").write_text(source)
    metadata = site / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def make_ascend(
    folder: Path, *, cann: Optional[str] = "9.1.0", driver: str = "25.5.0", npu_smi: Optional[str] = NPU_SMI
) -> dict[str, str]:
    """Environment of a node with these versions.

    Args:
        folder: receives the files.
        cann: version of the toolkit; None: CANN is absent.
        driver: version of the driver.
        npu_smi: what `npu-smi info` prints; None leaves the program that is there.
    """
    environment = {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "ASCEND_DRIVER_INFO": str(folder / "driver.info")}
    (folder / "driver.info").write_text(f"Version={driver}\nascendhal_version=7.35.23\n")
    if npu_smi is not None:
        listing = folder / "npu_smi.txt"
        listing.write_text(npu_smi.replace("25.5.0", driver))
        make_program(folder / "bin" / "npu-smi", f'cat "{listing}"')
    if cann is not None:
        home = folder / "Ascend" / "cann"
        (home / "aarch64-linux").mkdir(parents=True, exist_ok=True)
        info = f"package_name=Ascend-cann-toolkit\nversion={cann}\narch=aarch64\nos=linux\n"
        (home / "aarch64-linux" / "ascend_toolkit_install.info").write_text(info)
        (home / "set_env.sh").write_text(f'export ASCEND_HOME_PATH="{home}"\n')
        environment["ASCEND_HOME_PATH"] = str(home)
    return environment
