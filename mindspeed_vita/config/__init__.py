"""The recipe as frozen dataclasses: loading, checks, and presets of sizes and stages. Families of towers and decoders are tables."""

from mindspeed_vita.config.languages import LanguageTraits, language_names, language_traits, register_language
from mindspeed_vita.config.load import (
    expand_variables,
    import_plugins,
    load_recipe,
    model_config_from_dict,
    recipe_from_dict,
    recipe_of_checkpoint,
    recipe_to_dict,
)
from mindspeed_vita.config.lora import LORA_TARGETS
from mindspeed_vita.config.objectives import SUPERVISED, add_objective_name, objective_names
from mindspeed_vita.config.projectors import ProjectorTraits, projector_names, projector_traits, register_projector_traits
from mindspeed_vita.config.recipe import (
    MODULES,
    CheckpointConfig,
    DataConfig,
    DebugConfig,
    EvalConfig,
    HealthConfig,
    KernelsConfig,
    LanguageConfig,
    LoggingConfig,
    LoraConfig,
    ModelConfig,
    ParallelConfig,
    ProfileConfig,
    ProjectorConfig,
    Recipe,
    RopeScalingConfig,
    TrainConfig,
    VisionConfig,
)
from mindspeed_vita.config.stretching import stretched
from mindspeed_vita.config.towers import TowerTraits, register_traits, tower_names, tower_traits
from mindspeed_vita.config.unique_keys import RepeatedKey, load_yaml, yaml_problem
from mindspeed_vita.config.validate import validate, validate_model

__all__ = [
    "LORA_TARGETS",
    "MODULES",
    "SUPERVISED",
    "CheckpointConfig",
    "DataConfig",
    "DebugConfig",
    "EvalConfig",
    "HealthConfig",
    "KernelsConfig",
    "LanguageConfig",
    "LanguageTraits",
    "LoggingConfig",
    "LoraConfig",
    "ModelConfig",
    "ParallelConfig",
    "ProfileConfig",
    "ProjectorConfig",
    "ProjectorTraits",
    "Recipe",
    "RepeatedKey",
    "RopeScalingConfig",
    "TowerTraits",
    "TrainConfig",
    "VisionConfig",
    "add_objective_name",
    "expand_variables",
    "import_plugins",
    "language_names",
    "language_traits",
    "load_recipe",
    "load_yaml",
    "model_config_from_dict",
    "objective_names",
    "projector_names",
    "projector_traits",
    "recipe_from_dict",
    "recipe_of_checkpoint",
    "recipe_to_dict",
    "register_language",
    "register_projector_traits",
    "register_traits",
    "stretched",
    "tower_names",
    "tower_traits",
    "validate",
    "validate_model",
    "yaml_problem",
]
