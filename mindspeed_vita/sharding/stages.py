"""Deals decoder layers to the stages of a pipeline. Counts only; parallel/stages.py knows what the stages cost."""

from __future__ import annotations


def balanced_layers(num_layers: int, stages: int, *, first: float = 0.0, last: float = 0.0) -> tuple[int, ...]:
    """Layers of each stage, at least one, with the smallest possible work of the busiest stage.

    All layers cost the same. So each layer in turn may go to the stage that has the least work with it: no other way is better.

    Args:
        num_layers: decoder layers; at least as many as there are stages.
        stages: number of stages.
        first: work of the first stage outside its layers, in layers.
        last: work of the last stage outside its layers, in layers.
    """
    assert 1 <= stages <= num_layers, (num_layers, stages)
    extra = [0.0] * stages
    extra[0] += first
    extra[-1] += last
    layers = [1] * stages
    for _ in range(num_layers - stages):
        chosen = min(range(stages), key=lambda stage: (layers[stage] + 1 + extra[stage], stage))
        layers[chosen] += 1
    return tuple(layers)
