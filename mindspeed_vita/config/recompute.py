"""What recomputation of a recipe means: which layers, what they keep, and in how many bytes. models/decoder_layer.py carries it out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mindspeed_vita.choices import Offload, Recompute
from mindspeed_vita.config.recipe import Recipe, TrainConfig

WHOLE_LAYERS: tuple[Recompute, ...] = ("full_but_attention", "full")
"""Modes that run a layer's forward pass again, so that its input is what it saves."""
_BYTES = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True)
class Recomputation:
    """The recipe's three keys, for whoever builds the layers of one pipeline stage."""

    mode: Recompute = "none"
    layers: int = 0
    """Layers at the start of the stage; 0: all."""
    offload: Offload = "none"

    @classmethod
    def of(cls, train: TrainConfig) -> Recomputation:
        """What a recipe asks for."""
        return cls(train.recompute, train.recompute_layers, train.offload)

    def of_layer(self, place: int) -> Recompute:
        """The mode of a layer, by its place in its stage, from 0."""
        return self.mode if not self.layers or place < self.layers else "none"

    @property
    def tower(self) -> bool:
        """Whether the tower's layers are recomputed."""
        return self.mode in WHOLE_LAYERS


NO_RECOMPUTATION = Recomputation()


def without_recomputation(train: TrainConfig) -> TrainConfig:
    """The same without recomputation, for what has no backward pass."""
    return replace(train, recompute="none", recompute_layers=0, offload="none")


def recompute_problems(recipe: Recipe, *, uneven_pipeline: bool) -> list[str]:
    """What is wrong with the three keys together; for `validate`."""
    train, problems = recipe.train, []
    if train.recompute_layers and train.recompute == "none":
        problems.append(
            f"train.recompute_layers={train.recompute_layers} with train.recompute=none recomputes nothing; "
            "choose what these layers recompute (full, full_but_attention, mlp, selective), or leave recompute_layers out"
        )
    layers = recipe.model.language.num_layers // recipe.parallel.pp
    if train.recompute_layers > layers and not uneven_pipeline:
        problems.append(
            f"train.recompute_layers={train.recompute_layers}, but a pipeline stage has {layers} layers; use at most {layers}, or 0 for all"
        )
    if train.offload != "none" and train.recompute not in WHOLE_LAYERS:
        problems.append(
            f"train.offload={train.offload} with train.recompute={train.recompute}: only layers that are recomputed whole keep nothing "
            f"but their input; use train.recompute={' or '.join(WHOLE_LAYERS)}, or train.offload=none"
        )
    return problems


def recomputed_layers(recipe: Recipe) -> int:
    """Decoder layers of a pipeline stage that recompute; where stages are uneven, of an average one."""
    if recipe.train.recompute == "none":
        return 0
    layers = recipe.model.language.num_layers // recipe.parallel.pp
    return min(recipe.train.recompute_layers or layers, layers)


def kept_attention_bytes(recipe: Recipe) -> int:
    """Bytes of attention results that full_but_attention keeps on a rank, for each pack between its forward and its backward pass.

    Output [T, N, D] in the precision of the run and log-sum-exp [T, N] in fp32 of each recomputed layer: T tokens and N heads of a rank.
    """
    if recipe.train.recompute != "full_but_attention":
        return 0
    language, parallel = recipe.model.language, recipe.parallel
    tokens, heads = recipe.data.seq_length // parallel.cp, language.num_heads // parallel.tp
    return recomputed_layers(recipe) * tokens * heads * (language.head_dim * _BYTES[recipe.train.precision] + 4)


def offloaded_bytes(recipe: Recipe) -> int:
    """Bytes of host memory that a rank's layer inputs take, for each pack between its forward and its backward pass."""
    if recipe.train.offload == "none":
        return 0
    tokens = recipe.data.seq_length // (recipe.parallel.cp * recipe.parallel.tp)
    return recomputed_layers(recipe) * tokens * recipe.model.language.hidden_size * _BYTES[recipe.train.precision]


def describe_recomputation(recipe: Recipe) -> str:
    """One phrase with what it costs, for `vita check`."""
    train = recipe.train
    text = f"recompute {train.recompute}"
    if train.recompute_layers:
        text += f" in {train.recompute_layers} of {recipe.model.language.num_layers // recipe.parallel.pp} layers of a stage"
    notes = []
    if kept_attention_bytes(recipe):
        notes.append(f"keeps {kept_attention_bytes(recipe) / 2**30:.2f} GiB of attention results")
    if offloaded_bytes(recipe):
        notes.append(f"{offloaded_bytes(recipe) / 2**30:.2f} GiB of layer inputs in host memory")
    return f"{text} ({', '.join(notes)}, for each pack in flight on a rank)" if notes else text
