"""Vision towers."""

from mindspeed_vita.models.vision.registry import register_tower, towers

__all__ = ["register_tower", "towers"]
