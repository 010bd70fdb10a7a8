"""Vision towers."""

from mindspeed_vita.models.vision.registry import towers

__all__ = ["towers"]
