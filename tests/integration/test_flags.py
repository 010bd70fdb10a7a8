"""Flags on real MindSpeed-LLM: the table is that of its parser, refusals come before a step, and what is honoured trains the same curve."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mindspeed_vita.integration.mindspeed_llm.parser_table import PINNED, tables
from tests.integration.conftest import save_fresh_weights
from tests.integration.mindspeed_run import ROOT, MindSpeed, Printed
from tests.tiny_data import TinyData, read_metrics

LOSS = 1e-6
"""As in test_mindspeed_llm.py."""


def refusal(printed: Printed) -> str:
    """The one line that a refused start says; nothing was trained."""
    assert printed.status == 2 and not printed.losses, printed.text[-3000:]
    assert "Traceback" not in printed.text
    (line,) = [line for line in printed.text.splitlines() if line.startswith("pretrain_vita: error")]
    return line


def test_the_table_of_flags_is_that_of_the_real_parser(mindspeed: MindSpeed):
    output = mindspeed.folder / "flags.json"
    command = [mindspeed.python, str(ROOT / "scripts" / "upstream_flags.py"), PINNED, str(output)]
    done = subprocess.run(command, env=mindspeed.environment(), cwd=mindspeed.folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert output.read_text() == tables()[PINNED].read_text(), "write the table again: scripts/upstream_flags.py"


@pytest.mark.parametrize(
    "flags, said",
    [
        (
            "--reset-attention-mask --context-parallel-algo ulysses_cp_algo --optimizer sgd",
            ["--reset-attention-mask", "--vita-data-resets true", "--context-parallel-algo ulysses_cp_algo", "--optimizer sgd"],
        ),
        (
            "--cp-window-size 2 --ulysses-degree-in-cp 2 --pre-tockens 8 --attention-mask-type general --position-embedding-type none "
            "--loss-compute-mode chunk --eval-iters 2 --async-save --num-virtual-stages-per-pipeline-rank 2 --deterministic-mode",
            ["--cp-window-size 2", "--ulysses-degree-in-cp 2", "--pre-tockens 8", "--attention-mask-type general", "--async-save",
             "--position-embedding-type none", "--loss-compute-mode chunk", "--eval-iters 2", "--num-virtual-stages-per-pipeline-rank 2"],
        ),
        ("--no-such-flag", ["unrecognized arguments: --no-such-flag"]),
        ("--weight-decay-incr-style linear", ["upstream refuses the command line"]),
    ],
    ids=["attention", "formerly_silent", "unknown", "megatrons_own"],
)  # fmt: skip
def test_flags_are_refused_in_one_line(mindspeed: MindSpeed, tiny: TinyData, flags: str, said: list[str], request: pytest.FixtureRequest):
    name = f"refused_{request.node.callspec.id}"
    line = refusal(mindspeed.train(tiny.recipe(mindspeed.folder / name), name=name, flags=flags.split()))
    assert [words for words in said if words not in line] == []


def test_a_run_without_its_optimizer_or_at_another_size_does_not_continue(mindspeed: MindSpeed, tiny: TinyData):
    plain = tiny.recipe(mindspeed.folder / "no_optim", train={"steps": 4}, checkpoint={"save_every": 2})
    saved = mindspeed.train(plain, name="no_optim", flags=["--no-save-optim", "--exit-interval", "2"])
    assert saved.status == 0, saved.text[-3000:]
    assert "was saved with --no-save-optim" in refusal(mindspeed.train(plain, name="no_optim_again"))
    wider = replace(plain, parallel=replace(plain.parallel, tp=2))
    assert "vita convert --from" in refusal(mindspeed.train(wider, 2, name="no_optim_tp2"))
    continued = mindspeed.train(plain, name="no_optim_continued", flags=["--no-load-optim"])
    assert continued.status == 0 and sorted(continued.losses) == [3, 4], continued.text[-3000:]


def test_an_uneven_pipeline_trains_the_built_in_engines_curve(mindspeed: MindSpeed, tiny: TinyData):
    from mindspeed_vita.engine.loop import train

    def recipe(name: str, init_from: str = "", pp: int = 1):
        plain = tiny.recipe(mindspeed.folder / name, train={"steps": 4}, parallel={"pp": pp}, checkpoint={"init_from": init_from})
        return replace(plain, model=replace(plain.model, language=replace(plain.model.language, num_layers=3)))

    weights = save_fresh_weights(recipe("three_layers"), mindspeed.folder / "three_layers")
    own = recipe("uneven_built_in", str(weights))
    train(own)
    told = recipe("uneven", str(weights), pp=2)
    flags = ["--decoder-first-pipeline-num-layers", "1", "--use-fused-ring-attention-update", "--sparse-mode", "2", "--shape-order", "BSND"]
    printed = mindspeed.train(told, 2, "uneven", flags)
    expected = dict(enumerate(read_metrics(Path(own.checkpoint.directory)), 1))
    assert mindspeed.off_by("fp32, pp2, 1 + 2 layers, built-in engine's curve", 2, printed, expected) <= LOSS
    notes = [line for line in printed.text.splitlines() if "has no effect here" in line]
    assert [note.split()[1] for note in notes] == ["--use-fused-ring-attention-update", "--shape-order"], "each once, by the first rank"
    line = refusal(mindspeed.train(told, 2, "uneven_refused"))
    assert "--num-layers 3 over --pipeline-model-parallel-size 2" in line and "--decoder-first-pipeline-num-layers" in line
