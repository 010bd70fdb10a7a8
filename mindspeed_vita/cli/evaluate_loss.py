"""`vita eval loss CHECKPOINT --mixture FILE`: held-out loss of a checkpoint, as a table and as JSON."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from mindspeed_vita.choices import PRECISIONS

if TYPE_CHECKING:
    from mindspeed_vita.evaluation.gates import Gate
    from mindspeed_vita.evaluation.held_out_loss import LossOptions, MeasuredLoss

_EPILOG = """
examples:
  vita eval loss runs/stage2                                (the eval section of the run's own recipe: the number that the run printed)
  vita eval loss runs/stage2/step_0000500 --mixture held_out.yaml --packs 32
  vita eval loss exported --recipe stage2.yaml              (packs as in that recipe: an export does not say how samples are packed)
  torchrun --nproc_per_node 4 -m mindspeed_vita.cli.main eval loss runs/stage4 --tp 2 --cp 2 --mixture long.yaml
  vita eval loss runs/stage1 --at-most 1.8                  (a gate: checkpoint.init_from refuses the run where the loss is higher)

exit status: 0 measured, and within --at-most where that is given; 1 above --at-most; 2 an error that its message says how to mend.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.epilog = _EPILOG
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="native run or step folder, Hugging Face folder, or MindSpeed-LLM folder")
    parser.add_argument("--adapter", default="", metavar="DIR", help="LoRA adapters that are merged into the weights; see `vita generate`")
    parser.add_argument("--mixture", default="", metavar="FILE", help="held-out mixture (YAML); default: eval.mixture of the recipe")
    parser.add_argument("--recipe", default="", metavar="FILE", help="recipe whose data and eval sections count; default: that of a native"
                        " or MindSpeed-LLM checkpoint")  # fmt: skip
    parser.add_argument("--media-root", default="", metavar="DIR", help="folder that relative media paths start from")
    parser.add_argument("--packs", type=int, metavar="N", help="packs to evaluate; 0: all of one epoch; default: eval.packs")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the packs; default: eval.seed")
    parser.add_argument("--seq-length", type=int, metavar="N", help="tokens of a pack; default: data.seq_length")
    for axis, what in (("tp", "tensor"), ("pp", "pipeline"), ("cp", "context")):
        parser.add_argument(f"--{axis}", type=int, default=1, metavar="N", help=f"{what} parallel size, under torchrun (default 1)")
    parser.add_argument("--ulysses", type=int, default=1, metavar="N", help="parallel.ulysses of the recipe (default 1)")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: that of the training, for an export that of its weights")
    parser.add_argument("--tokenizer", default="", metavar="DIR", help="tokenizer folder, where the checkpoint's own is missing")
    parser.add_argument("--plugin", action="append", default=[], metavar="MODULE", help="Python module that registers the decoder of a"
                        " Hugging Face folder; may be repeated")  # fmt: skip
    parser.add_argument("--output", metavar="FILE", help="write the result as JSON")
    parser.add_argument("--at-most", type=float, metavar="LOSS", help="gate: a higher loss ends with status 1, and holds a run's step back"
                        " from the next stage")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write JSON and the gate."""
    options = _options(arguments)  # looks at the arguments before anything heavy is imported
    from mindspeed_vita.addresses import is_address
    from mindspeed_vita.engine.chosen_step import choose_step
    from mindspeed_vita.engine.session import rank
    from mindspeed_vita.evaluation.gates import status_of
    from mindspeed_vita.evaluation.held_out_loss import measure_loss

    checkpoint = choose_step(arguments.checkpoint) if is_address(arguments.checkpoint) else Path(arguments.checkpoint)
    leads = rank() == 0
    if leads:
        print(f"loading {checkpoint}", file=sys.stderr, flush=True)
    found = measure_loss(checkpoint, options)
    gate = _gate(arguments.at_most, found)
    if leads:
        _say(checkpoint, found, gate, arguments.output)
    return 0 if gate is None else status_of(gate)


def _options(arguments: argparse.Namespace) -> LossOptions:
    from mindspeed_vita.config import ParallelConfig, import_plugins

    for name, least in (("packs", 0), ("seq_length", 1), ("tp", 1), ("pp", 1), ("cp", 1), ("ulysses", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; expected at least {least}")
    if arguments.at_most is not None and not arguments.at_most > 0:
        raise ValueError(f"--at-most is {arguments.at_most}; expected a loss above 0")
    import_plugins(arguments.plugin, "--plugin")
    from mindspeed_vita.evaluation.held_out_loss import LossOptions

    names = ("recipe", "adapter", "mixture", "media_root", "packs", "seed", "seq_length", "tokenizer", "precision")
    given: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    sizes = {name: getattr(arguments, name) for name in ("tp", "pp", "cp", "ulysses")}
    return LossOptions(**given, parallel=ParallelConfig(**sizes), plugins=tuple(arguments.plugin))


def _gate(bound: Optional[float], found: MeasuredLoss) -> Optional[Gate]:
    from mindspeed_vita.engine.held_out_watch import GATE
    from mindspeed_vita.evaluation.gates import Gate

    if bound is None:
        return None
    detail = f"{found.recipe.eval.mixture}, packs {found.identity}"
    return Gate(name=GATE, measured=found.scores.loss, bound=bound, better="lower", detail=detail)


def _say(checkpoint: Path, found: MeasuredLoss, gate: Optional[Gate], output: Optional[str]) -> None:
    from mindspeed_vita.evaluation.gates import judge
    from mindspeed_vita.files.publish import whole_file
    from mindspeed_vita.files.writing import write_json
    from mindspeed_vita.wording import aligned

    scores, recipe = found.scores, found.recipe
    print(f"{checkpoint}: {recipe.eval.mixture}, {scores.packs:,} packs of {recipe.data.seq_length:,} tokens, {recipe.train.precision}")
    rows = [("source", "loss", "token accuracy", "tokens"), *(_row(name, score) for name, score in scores.sources.items())]
    rows.append(_row("all", scores))
    for line in aligned(rows, left=1):
        print(f"  {line}")
    if scores.failed:
        print(f"{scores.failed:,} samples did not decode and are not counted; {found.quarantine} names them", file=sys.stderr)
    if gate is not None:
        judge(found.folder, gate)
    if output:
        settings = {"mixture": recipe.eval.mixture, "seq_length": recipe.data.seq_length, "seed": recipe.eval.seed, "data": found.identity}
        content = {"checkpoint": str(found.folder.resolve()), "precision": recipe.train.precision, **settings, **asdict(scores)}
        with whole_file(Path(output)) as temporary:
            write_json(temporary, content if gate is None else {**content, "gate": {**asdict(gate), "held": gate.held}})


def _row(name: str, score: Any) -> tuple[str, str, str, str]:
    return name, f"{score.loss:.6f}", f"{score.accuracy:.2%}", f"{score.tokens:,}"
