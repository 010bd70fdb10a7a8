"""Vision towers by name: builder(config: VisionConfig, *, transformer_config, recompute, linears: TowerLinears) makes a module that maps
normalised tiles [B, 3, H, W] to features [B, patches, hidden] without a class token."""

from mindspeed_vita.models.registry import Registry
from mindspeed_vita.models.vision.intern_vit import InternVisionTower

towers = Registry("model.vision.tower", intern_vit=InternVisionTower)
