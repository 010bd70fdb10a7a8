"""Projectors: from tower features to rows of language embeddings."""

from mindspeed_vita.models.projector.registry import projectors

__all__ = ["projectors"]
