"""`vita train --engine`: what is printed for MindSpeed-LLM, and where flags after -- may stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from mindspeed_vita.cli.main import main


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {preset: 14b}\nstage: 2\ndata: {mixture: my mixture.yaml}\nparallel: {tp: 8}\n")
    return str(path)


def test_megatron_arguments_are_printed_for_a_shell(recipe: str, capsys: pytest.CaptureFixture[str]):
    assert main(["train", recipe, "train.lr=2e-5", "--print-megatron-args", "--", "--use-fused-rmsnorm", "--lr", "3e-5"]) == 0
    line = capsys.readouterr().out
    assert "--num-layers 48 " in line and "--tensor-model-parallel-size 8 " in line
    assert "--vita-data-mixture 'my mixture.yaml'" in line
    assert "--lr 2e-05 " in line and line.endswith("--use-fused-rmsnorm --lr 3e-5\n"), "what is passed on comes last, so it counts"


def test_the_built_in_engine_takes_no_flags_after_the_dashes(recipe: str, capsys: pytest.CaptureFixture[str]):
    assert main(["train", recipe, "--", "--use-fused-rmsnorm"]) == 2
    assert "--use-fused-rmsnorm: only --engine mindspeed-llm takes flags after --" in capsys.readouterr().err


def test_a_command_that_passes_nothing_on_refuses_the_rest(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["generate", "checkpoint", "--prompt", "x", "--", "--swiglu"])
    assert "unexpected arguments after --: --swiglu" in capsys.readouterr().err


def test_a_machine_without_ascend_is_told_what_lacks(recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.delenv("ASCEND_TOOLKIT_HOME", raising=False)
    assert main(["train", recipe, "--engine", "mindspeed-llm"]) == 2
    assert "MindSpeed-LLM cannot start here: CANN is missing: ASCEND_HOME_PATH is not set" in capsys.readouterr().err


def test_what_mindspeed_llm_saved_is_handed_over_once_and_then_resumed(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before, own = tmp_path / "before", tmp_path / "elsewhere"
    command = ["train", "--print-megatron-args", recipe, f"checkpoint.init_from={before}", f"checkpoint.directory={own}"]

    def line(*more: str) -> str:
        assert main([*command, *more]) == 0
        return capsys.readouterr().out

    assert f"--vita-checkpoint-init-from {before}" in line() and "--finetune" not in line(), "native weights, if any"
    before.mkdir()
    (before / "latest_checkpointed_iteration.txt").write_text("1000")
    first = line("--", "--swap-attention")
    assert first.endswith(f" --load {before} --finetune --swap-attention\n")
    assert "init-from" not in first and f"--save {own} " in first and first.count("--load") == 1
    assert "--finetune" not in line("--", "--load", "mine"), "the user's own"
    own.mkdir()
    (own / "latest_checkpointed_iteration.txt").write_text("500")
    again = line()
    assert "--finetune" not in again and f"--load {own}" in again
    assert "--finetune" in line("checkpoint.resume=false")
