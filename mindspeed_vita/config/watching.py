"""Sections of the recipe about watching a run: its health, what it logs, traces and dumps."""

from __future__ import annotations

from dataclasses import dataclass

from mindspeed_vita.choices import BadNumbers
from mindspeed_vita.config.kinds import Count, Counts, Factor, Flag, LostHost, Section, Size, Sizes, Text, Wait


@dataclass(frozen=True, kw_only=True)
class HealthConfig(Section):
    """What a run does when it hangs, or when its numbers go bad."""

    hang_minutes: Wait = 25.0
    """Minutes without a step, an evaluated pack or a save. Then every rank writes its stacks to hang_stacks.txt in the run's folder, and
    the run ends. 0: never. Longer than the longest step or save, and shorter than the 30 minutes that collectives wait."""
    lost_host_seconds: LostHost = 30.0
    """Seconds after which a host that does not answer is taken for gone. Then all other processes end. At least 6; longer where the network
    between the hosts is away at times."""
    on_bad_numbers: BadNumbers = "stop"
    """What is done about a step whose loss or gradient norm is bad. stop: the run ends. skip: the weights stay, and the run goes on with
    the next packs. roll_back: the run goes back to its last checkpoint, and goes on from there with the packs after the bad step."""
    spike_factor: Factor = 0.0
    """A loss or gradient norm above so many times its median over the last good steps is bad, too. More than 1; 0: only what is not finite
    is. Where the median is negative, as that of a plugin's objective may be, the loss may be as far above it as with a positive one."""
    spike_window: Size = 64
    """Good steps of that median."""
    most_bad_steps: Count = 5
    """Bad steps within 100 that skip and roll_back pass over; at the next one the run ends."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig(Section):
    """What a run prints and writes."""

    every: Size = 1
    """Steps between lines of metrics.jsonl."""
    tensorboard: Flag = True
    """Write TensorBoard events to <directory>/tensorboard."""
    openmetrics: Flag = False
    """Write the newest numbers to <directory>/metrics.prom too, in OpenMetrics format, for Prometheus' textfile collector."""
    wandb: Text = ""
    """Project of Weights & Biases that gets the numbers too; empty: none. Needs the package wandb. WANDB_MODE=offline keeps all here."""
    swanlab: Text = ""
    """Project of SwanLab that gets the numbers too; empty: none. Needs the package swanlab. SWANLAB_MODE=offline keeps all here."""
    progress: Flag = True
    """Show a progress bar on a terminal; plain lines elsewhere."""
    peak_tflops: Wait = 0.0
    """Dense bf16 TFLOP/s of one device, of which metrics.jsonl then has the share that was reached (mfu); 0: taken from a table of
    GPUs (mindspeed_vita/engine/work.py). Elsewhere, and in fp32, there is no mfu."""


@dataclass(frozen=True, kw_only=True)
class ProfileConfig(Section):
    """A trace of a few steps, in which the phases of a step have names. Each asked rank writes one to <directory>/profile."""

    steps: Sizes = ()
    """First and last step of the trace, such as 10, 12; empty: nothing is recorded. Two or three steps are enough: a trace is large."""
    ranks: Counts = (0,)
    """Global ranks that record."""


@dataclass(frozen=True, kw_only=True)
class DebugConfig(Section):
    """Finding the place where two runs diverge (docs/guides/compare_runs.md)."""

    msprobe: Text = ""
    """The config.json of msprobe (package mindstudio-probe), which writes what goes in and out of modules; empty: nothing is written."""
