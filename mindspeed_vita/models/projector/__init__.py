"""Projectors: from tower features to rows of language embeddings."""

from mindspeed_vita.models.projector.registry import projectors, register_projector

__all__ = ["projectors", "register_projector"]
