"""The device behind one small interface, and every branch between the supported lines of megatron-core."""

from mindspeed_vita.platform.base import Capabilities, Memory, Platform
from mindspeed_vita.platform.select import announce, get_platform, register_platform

__all__ = ["Capabilities", "Memory", "Platform", "announce", "get_platform", "register_platform"]
