"""Names of states, and what only repairs call."""

from enum import Enum

_version = [None]


class OptimizerType(Enum):
    """Which optimizer of a chained one."""

    ATTENTION = 0
    MOE = 1


class RepairType(Enum):
    """What a process does in a repair."""

    RT_SEND = 0
    RT_UCE_HIGHLEVEL = 1
    RT_UCE_LOWLEVEL = 2
    RT_ROLLBACK = 3
    RT_RECV_REPAIR = 4
    RT_LOAD_CKPT = 5
    RT_LOAD_REBUILD = 6


def set_mindio_export_version(framework):
    """Which framework calls."""
    _version[0] = framework


def get_mindio_export_version():
    """What was set."""
    return _version[0]


def tft_get_repair_type():
    """The one thing that the stand-in does after a fault."""
    return "dump"


def tft_report_load_ckpt_step(step):
    raise AssertionError("the stand-in repairs nothing, so nobody asks for this")


def get_device():
    raise AssertionError("the stand-in repairs nothing, so nobody asks for this")
