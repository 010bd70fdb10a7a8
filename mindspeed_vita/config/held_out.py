"""The eval section of a recipe: held-out loss while a run goes on."""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_vita.config.kinds import Count, Factor, Flag, Integer, Section, Size, Text


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Section):
    """Held-out loss while the run goes on: the same packs each time, from files that it does not train on."""

    mixture: Text = ""
    """Path of the held-out mixture YAML; empty: nothing is measured. Its rows become packs by the settings of the data section."""
    media_root: Text = ""
    """Folder that relative media paths of this mixture start from; empty: data.media_root."""
    every: Size = 500
    """Steps between two evaluations. The last step is always evaluated."""
    packs: Count = 0
    """Packs that are evaluated each time; 0: every pack of one epoch. More than the mixture gives are refused. Inside MindSpeed-LLM a
    rank holds its share of them in host memory, with their tiles, while it evaluates: set a number there."""
    seed: Integer = 1234
    """Seed of the held-out packs: which samples share a pack, and which packs are taken."""
    at_start: Flag = True
    """Evaluate before the first step too. The number is that of the weights which the run starts from."""
    patience: Count = 0
    """Evaluations in a row without a new lowest held-out loss after which the run ends; 0: it goes on to train.steps."""
    keep_best: Flag = False
    """Save a checkpoint at each new lowest held-out loss, and never prune the best one. best.json in the folder names its step."""
    gate: Factor = 0.0
    """Highest held-out loss at the end of the run with which another run may start from it (checkpoint.init_from); 0: no limit."""
