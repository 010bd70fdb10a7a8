"""Enters MindSpeed-LLM in the one order that works: checks, platform, its adaptor, the ledger's patches, our feature, Megatron."""

from __future__ import annotations

import os
import platform as host

from mindspeed_vita.integration.mindspeed_llm.feature import feature
from mindspeed_vita.integration.mindspeed_llm.machine import check_machine
from mindspeed_vita.integration.mindspeed_llm.upstream_errors import imports_of_upstream
from mindspeed_vita.integration.patching import apply_ledger
from mindspeed_vita.integration.patching.ledger import Ledger, load_ledger
from mindspeed_vita.integration.patching.starting import compare_sources, unknown_commits
from mindspeed_vita.platform import Platform, announce, get_platform


def bootstrap() -> Platform:
    """Makes this process one of MindSpeed-LLM's, with this package in it. sys.argv must hold Megatron's flags, which it reads on import.

    Returns:
        The NPU of this process. Its `activate` is not called: torch_npu's transfer_to_npu, which MindSpeed-LLM imports, does the same work.

    Raises:
        ValueError: something is missing or has the wrong version, or an upstream function is not what a patch was written against.
    """
    check_machine()
    platform = get_platform("npu")
    # Megatron asks for it where tensor or context parallelism is used
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    ledger = load_ledger()
    notes = upstream_notes(ledger)
    with imports_of_upstream():
        import mindspeed_llm  # noqa: F401 - the adaptor: applies MindSpeed's patches, so before anything of megatron is imported
        from mindspeed.features_manager.features_manager import MindSpeedFeaturesManager
        from mindspeed.patch_utils import MindSpeedPatchesManager

    apply_ledger(MindSpeedPatchesManager)  # refuses before anything is changed
    # the first of the list is asked first, before MindSpeed's own checks of the arguments
    MindSpeedFeaturesManager.FEATURES_LIST.insert(0, feature())
    announce(platform, rank=int(os.environ.get("RANK", "0")))
    for line in notes:
        print(f"vita: {line}", flush=True)
    return platform


def upstream_notes(ledger: Ledger) -> list[str]:
    """What differs between this node's upstream sources and those that the patches were compared with. Every node has its own checkouts.

    Returns:
        Lines on the first process of each node, with the host's name on nodes other than the first; none on other processes.

    Raises:
        ValueError: as compare_sources.
    """
    rank = os.environ.get("RANK", "0")
    if os.environ.get("LOCAL_RANK", rank) != "0":
        return []
    where = "" if rank == "0" else f"{host.node()}: "
    return [f"{where}{line}" for line in (*unknown_commits(ledger), *compare_sources(ledger))]
