"""vita check: one line a topic, every problem at once, and the exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mindspeed_vita.cli.main import main
from mindspeed_vita.config import recipe_to_dict


@pytest.fixture
def recipe(tiny, tmp_path):
    """Writes a recipe over the tiny data set; returns its path."""

    def write(**sections) -> str:
        content = recipe_to_dict(tiny.recipe(tmp_path / "run", **sections))
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
        return str(tmp_path / "recipe.yaml")

    return write


def save(recipe_file: str, folder: Path, **train) -> None:
    """The head of a checkpoint: what check looks at."""
    content = yaml.safe_load(Path(recipe_file).read_text())
    content["train"].update(train)
    folder.mkdir(parents=True)
    (folder / "checksums.json").write_text("{}")
    (folder / "recipe.json").write_text(json.dumps(content))


def test_a_recipe_that_would_start(recipe, tiny, capsys):
    assert main(["check", "--processes", "2", recipe(), "train.steps=7"]) == 0
    out = capsys.readouterr().out
    assert "7 steps of 4 packs" in out and "dp 2; 2 packs a step for each data-parallel rank" in out
    assert "1 source, 1 file, all there; media below the folder of each file" in out
    assert "random, as checkpoint.init_from is empty" in out and out.splitlines()[-1] == "PASS: the run would start"


def test_what_recomputation_costs_is_shown(recipe, tiny, capsys):
    settings = ["parallel.cp=2", "train.recompute=full_but_attention", "train.recompute_layers=1", "train.offload=inputs"]
    file = recipe()
    assert main(["check", "--processes", "2", file, "data.seq_length=1048576", "train.precision=bf16", *settings]) == 0
    language = yaml.safe_load(Path(file).read_text())["model"]["language"]
    kept = 2**19 * (language["hidden_size"] * 2 + 4 * language["num_heads"]) / 2**30
    inputs = 2**19 * language["hidden_size"] * 2 / 2**30
    expected = f"keeps {kept:.2f} GiB of attention results, {inputs:.2f} GiB of layer inputs in host memory, for each pack in flight"
    out = capsys.readouterr().out
    assert f"recompute full_but_attention in 1 of {language['num_layers']} layers of a stage ({expected}" in out


def test_every_problem_is_listed(recipe, capsys, tmp_path):
    file = recipe(data={"tokenizer": "gone", "media_root": "nowhere"}, checkpoint={"init_from": "lost"}, parallel={"tp": 3})
    assert main(["check", "--processes", "2", file]) == 2
    out = capsys.readouterr().out
    assert out.count("PROBLEM") == 4 and "FAIL: 4 of 6 topics" in out
    expected = ("recipe 'tiny': 6 problems: (1) tp*pp*cp=3", "root='nowhere' is no folder", "tokenizer folder 'gone'", "=lost: no such")
    assert all(words in out for words in expected), out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.template=llama3", "data.template='llama3' needs <|begin_of_text|>, "),
        ("data.template=chatml", "data.template='chatml' is unknown; expected one of qwen2, llama3, mistral, vicuna"),
        ("model.projector.pixel_shuffle=3", "model.projector.pixel_shuffle=3 does not divide the patch grid=4; use a divisor, or"),
    ],
)
def test_what_does_not_go_together_is_told_when_the_recipe_is_read(recipe, capsys, override, message):
    assert main(["check", recipe(), override]) == 2
    assert message in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.projector.kind=mlp_newlin", "='mlp_newlin' (from the command line); expected one of mlp, mlp_stride, mlp_newline, or one"),
        ("model.vision.tower=eva", "model.vision.tower='eva' (from the command line); expected one of intern_vit, siglip, clip"),
        ("data.video_reader=opencv", "data.video_reader='opencv' (from the command line); expected one of pyav, decord, torchcodec"),
    ],
)
def test_a_value_that_does_not_exist_is_one_line_before_anything_is_looked_at(recipe, capsys, override, message):
    assert main(["check", recipe(), override]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out


def test_a_checkpoint_to_continue_from_is_named_and_compared(recipe, tmp_path, capsys):
    file = recipe()
    save(file, tmp_path / "run" / "step_0000003")
    assert main(["check", file]) == 0
    assert f"continues from {tmp_path / 'run' / 'step_0000003'}" in capsys.readouterr().out
    save(file, tmp_path / "run" / "step_0000005", lr=0.5)
    assert main(["check", file]) == 2
    assert "train.lr: 0.5 there, 0.01 here" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--processes", "0"], "--processes is 0"),
        (["--", "--swap-attention"], "only --engine mindspeed-llm takes flags"),
        (["train.lrr=1"], "did you mean train.lr"),
    ],
)
def test_wrong_arguments_end_in_one_line(recipe, arguments, message, capsys):
    file = recipe()
    before, after = (arguments, []) if arguments[0].startswith("--p") else ([], arguments)
    assert main(["check", *before, file, *after]) == 2
    assert message in capsys.readouterr().err


def test_flags_for_mindspeed_llm_are_counted(recipe, capsys):
    assert main(["check", "--engine", "mindspeed-llm", recipe(), "--", "--use-fused-rmsnorm"]) == 0
    assert "words for MindSpeed-LLM" in capsys.readouterr().out


def test_flags_that_mindspeed_llm_would_be_refused_are_named(recipe, capsys):
    assert main(["check", "--engine", "mindspeed-llm", recipe(), "--", "--reset-attention-mask"]) == 2
    assert "PROBLEM: command line: --reset-attention-mask: " in capsys.readouterr().out
    stored = ["checkpoint.init_from=s3://b/runs/a", "checkpoint.store=s3://b/runs/b"]
    assert main(["check", "--engine", "mindspeed-llm", recipe(), *stored]) == 2
    told = capsys.readouterr().out
    assert "checkpoint.init_from=s3://b/runs/a is an address" in told and "checkpoint.store=s3://b/runs/b: MindSpeed-LLM's" in told


def test_a_start_from_another_tensor_parallel_size_is_found_before_the_run(recipe, tmp_path, capsys):
    path = tmp_path / "saved" / "iter_0000002" / "mp_rank_00" / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    torch.save({"model": {}}, path)
    (tmp_path / "saved" / "latest_checkpointed_iteration.txt").write_text("2")
    line = ["check", "--engine", "mindspeed-llm", "--processes", "2", recipe(), f"checkpoint.init_from={tmp_path / 'saved'}"]
    assert main(line) == 0
    capsys.readouterr()
    assert main([*line, "parallel.tp=2"]) == 2
    out = capsys.readouterr().out
    assert "was saved with tp=1 pp=1, this run has tp=2 pp=1" in out
    assert f"vita convert --from {tmp_path / 'saved'} --to mindspeed-llm --tp 2" in out


def test_an_uneven_pipeline_names_the_flag_that_makes_it_work(recipe, capsys):
    line = ["check", "--engine", "mindspeed-llm", "--processes", "2", recipe(), "model.language.num_layers=3", "parallel.pp=2"]
    assert main(line) == 2
    assert "PROBLEM: command line: --num-layers 3 over --pipeline-model-parallel-size 2" in capsys.readouterr().out
    assert main([*line, "--", "--decoder-first-pipeline-num-layers", "1", "--use-flash-attn"]) == 0
    assert "--use-flash-attn has no effect here: attention is this package's" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--engine", "mindspeed-llm"]], ids=["builtin", "mindspeed-llm"])
def test_no_torch_is_needed(recipe, more):
    code = f"import sys; from mindspeed_vita.cli.main import main; main(['check', *{more}, {recipe()!r}]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_the_engine_on_trainer_needs_weights_and_its_packages(recipe, tmp_path, capsys, monkeypatch):
    from mindspeed_vita.integration.hf_trainer import deepspeed_file, settings

    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    assert main(["check", "--engine", "hf", "--deepspeed", "zero3", recipe()]) == 2
    told = capsys.readouterr().out
    assert "weights    PROBLEM: --engine hf starts from weights: set checkpoint.init_from" in told
    assert "lacks accelerate and deepspeed; run: " in told and told.endswith("FAIL: 2 of 7 topics have a problem\n")
    monkeypatch.setattr(settings, "find_spec", lambda name: name)
    monkeypatch.setattr(settings, "version", lambda name: "7.0")
    file = recipe(checkpoint={"init_from": str(tmp_path / "before")})
    save(file, tmp_path / "before" / "step_0000003")
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}')
    for missing, adam in (([], "DeepSpeed"), (["c++"], "torch")):
        monkeypatch.setattr(deepspeed_file, "lacking_compiler", lambda found=missing: found)
        assert main(["check", "--engine", "hf", "--deepspeed", str(tmp_path / "ds.json"), file]) == 0
        assert f"optimizer in host memory, updated by {adam}'s AdamW" in capsys.readouterr().out
    assert main(["check", "--engine", "hf", "--deepspeed", str(tmp_path / "ds.json"), file]) == 0
    told = capsys.readouterr().out
    assert f"start from {tmp_path / 'before' / 'step_0000003'}; checkpoints go to" in told
    assert f"accelerate 7.0, deepspeed 7.0; ZeRO-2 of {tmp_path / 'ds.json'}, optimizer in host memory, updated by torch's AdamW" in told
    assert main(["check", "--engine", "hf", "--fsdp", file]) == 0 and "accelerate 7.0; FSDP2" in capsys.readouterr().out
    assert main(["check", "--engine", "hf", "--fsdp", "--deepspeed", "zero3", file]) == 2
    assert "--deepspeed and --fsdp both share" in capsys.readouterr().out
    assert main(["check", "--fsdp", file]) == 2 and "--fsdp: only --engine hf takes it" in capsys.readouterr().err
    assert main(["check", "--deepspeed", "zero3", file]) == 2 and "only --engine hf takes it" in capsys.readouterr().err
