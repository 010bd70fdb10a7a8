"""Vision towers by name: builder(config: VisionConfig, *, transformer_config, recompute, linears: TowerLinears, attend: AttendTiles).

It makes a module that maps normalised tiles [B, 3, H, W] to features [B, patches, hidden] without a class token. docs/add_a_tower.md
adds one.
"""

from mindspeed_vita.config import TowerTraits, register_traits, tower_names
from mindspeed_vita.models.registry import Builder, Registry
from mindspeed_vita.models.vision.vit import VitTower

towers = Registry("model.vision.tower", **dict.fromkeys(tower_names(), VitTower))


def register_tower(name: str, traits: TowerTraits, builder: Builder = VitTower) -> None:
    """Adds a tower to those that a recipe may name.

    Args:
        name: for model.vision.tower.
        traits: how it differs from other ViTs; import and export go by them.
        builder: a module of its own where the traits do not describe it; such a tower trains, but has no Hugging Face layout.

    Raises:
        ValueError: the name is taken, or the traits are no traits of a ViT here.
    """
    register_traits(name, traits)
    if not (builder is VitTower and towers.knows(name, VitTower)):
        towers.register(name, builder)
