"""Flags that would take attention, context parallelism, the data or the loss away are refused, each with what to change."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

import pytest
import torch

from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.integration.mindspeed_llm.feature import VitaFeature
from mindspeed_vita.integration.mindspeed_llm.high_availability import check_replicas, copies_of_optimizer
from mindspeed_vita.integration.mindspeed_llm.refusals import check_line
from mindspeed_vita.integration.mindspeed_llm.saved import check_writer
from mindspeed_vita.integration.mindspeed_llm.upstream_errors import arguments_of_upstream, imports_of_upstream
from tests.unit.integration.mindspeed_llm.command_lines import good_line, parsed

LINE = good_line()


def without(*flags: str) -> list[str]:
    """The good line without some flags and their values."""
    kept: list[str] = []
    skip = False
    for word in LINE:
        skip = word in flags if word.startswith("--") else skip
        kept += [] if skip else [word]
    return kept


def test_a_good_command_line_passes():
    frozen = ["--swap-attention", "--vita-train-modules", "projector,language"]
    assert check_line([*LINE, *frozen, "--lr", "3e-5", "--norm-epsilon=1e-6", "--use-fused-rmsnorm"]) == []


BAD = [
    ("--reset-attention-mask", "--reset-attention-mask: .*; packs are isolated with --vita-data-resets true"),
    ("--reset-position-ids", "--reset-position-ids: .*--vita-data-resets true"),
    ("--context-parallel-algo ulysses_cp_algo", "--context-parallel-algo ulysses_cp_algo: upstream's algorithms wrap the attention of"),
    ("--context-parallel-algo hybrid_cp_algo", "--context-parallel-algo hybrid_cp_algo: .*--vita-parallel-ulysses"),
    ("--context-parallel-algo kvallgather_cp_algo", "--context-parallel-algo kvallgather_cp_algo"),
    ("--cp-window-size 2", "--cp-window-size 2: .*--vita-parallel-cp-per-node"),
    ("--ulysses-degree-in-cp 2", "--ulysses-degree-in-cp 2: .*use --vita-parallel-ulysses"),
    ("--pre-tockens 8", "--pre-tockens 8: attention sees the whole document"),
    ("--sparse-mode 4", "--sparse-mode 4: attention is causal"),
    ("--attention-mask-type general", "--attention-mask-type general: .*use causal"),
    ("--cp-attention-mask-type general", "--cp-attention-mask-type general: .*use causal"),
    ("--position-embedding-type none", "--position-embedding-type none: positions are rotary; use rope"),
    ("--loss-compute-mode chunk", "--loss-compute-mode chunk: .*use --vita-model-lm-head chunked"),
    ("--npu-datadump --vita-debug-msprobe config.json", "--npu-datadump next to --vita-debug-msprobe: .*leave one of them out"),
    ("--eval-iters 2", "--eval-iters 2 without --vita-eval-mixture: there is no held-out data; name its mixture, or use 0"),
    ("--eval-iters 3 --vita-eval-mixture m.yaml --vita-eval-packs 529", r"529 held-out packs \(--vita-eval-packs\) are 2 batches of 528"),
    ("--skip-train", "--skip-train: there is no test data, .*vita eval loss measures a checkpoint"),
    ("--rope-scaling-type yarn", "--rope-scaling-type yarn: .*--vita-model-language-rope-scaling-kind"),
    ("--sliding-window 4096", "--sliding-window"),
    ("--multi-latent-attention", "--multi-latent-attention"),
    ("--multi-head-latent-attention", "--multi-head-latent-attention: .*no decoder here has"),
    ("--qk-layernorm", r"--qk-layernorm: the decoder is of the family qwen2 \(--vita-model-language-family\); leave it out"),
    ("--kv-channels 64", "--kv-channels 64: the heads are 128 wide; say --vita-model-language-head-width too"),
    ("--data-path 1 a 2 b", "--data-path 1 a 2 b: data comes from --vita-data-mixture"),
    ("--recompute-granularity selective", "--recompute-granularity selective: .*repeats attention.*full_but_attention, mlp or selective"),
    ("--recompute-activations", "--recompute-activations: .*repeats attention.*--vita-train-recompute"),
    ("--neat-pack", "--neat-pack: packs are planned"),
    ("--micro-batch-size 2", "--micro-batch-size 2: one pack is one micro-batch; use 1"),
    ("--dataloader-type cyclic", "--dataloader-type cyclic"),
    ("--normalization LayerNorm", "--normalization LayerNorm: .*RMSNorm"),
    ("--attention-dropout=0.1", "--attention-dropout 0.1: .*use 0.0"),
    ("--pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 7", "-pipeline-stage 7 does not divide the 24 layers"),
    ("--num-virtual-stages-per-pipeline-rank 2", "--num-virtual-stages-per-pipeline-rank 2: .*use --num-layers-per-virtual-pipeline-stage"),
    ("--no-overlap-p2p-communication", "--no-overlap-p2p-communication: the interleaved pipeline was compared"),
    ("--recompute-norm --vita-train-recompute full_but_attention", "--recompute-norm with --vita-train-recompute full_but_attention"),
    ("--swap-attention", "--swap-attention while the tower trains: .*--vita-train-offload inputs"),
    ("--schedules-method dualpipev", "--schedules-method dualpipev"),
    ("--noop-layers 1,2", "--noop-layers 1,2: .*use --decoder-first-pipeline-num-layers"),
    ("--num-layer-list 1,2", "--num-layer-list 1,2: .*use --decoder-first-pipeline-num-layers"),
    ("--num-experts 8", "--num-experts"),
    ("--fp16", "--fp16: .*use --bf16"),
    ("--use-torch-fsdp2", "--use-torch-fsdp2: .*use --use-distributed-optimizer"),
    ("--optimizer muon", "--optimizer muon: .*use adam"),
    ("--train-samples 10", "--train-samples 10: .*use --train-iters"),
    ("--async-save", "--async-save without --ckpt-format torch_dist"),
    ("--ckpt-format torch_dist --vita-lora-rank 4", "--ckpt-format torch_dist with --vita-lora-rank: adapters are saved alone"),
    ("--ckpt-format zarr", "argument --ckpt-format: invalid choice|--ckpt-format zarr: .*use torch or torch_dist"),
    ("--enable-high-availability --vita-lora-rank 4", "--enable-high-availability with --vita-lora-rank: .*leave one of them out"),
    ("--enable-high-availability --ckpt-format torch_dist", "--enable-high-availability with --ckpt-format torch_dist: .*use that"),
    ("--enable-high-availability --overlap-param-gather", "--enable-high-availability with --overlap-param-gather: .*leave one"),
    ("--enable-high-availability --swap-optimizer", "--enable-high-availability with --swap-optimizer: .*leave one of them out"),
    ("--enable-worker-reboot", "--enable-worker-reboot: .*leave it out, and set HIGH_AVAILABILITY to nothing but dump"),
    ("--iterations-to-skip 3 4", "--iterations-to-skip 3 4: a step that is skipped"),
    ("--lr-warmup-iters 5", "--lr-warmup-iters next to --lr-warmup-fraction"),
    ("--no-such-flag 1", "--no-such-flag 1: MindSpeed-LLM 26.1.0 has no such flag"),
    ("--sparse-mode two", "argument --sparse-mode: invalid int value: 'two'"),
    ("--optimizer lion", "argument --optimizer: invalid choice: 'lion'"),
]


@pytest.mark.parametrize("flags, message", BAD, ids=[flags for flags, _ in BAD])
def test_a_flag_is_refused_with_what_to_change(flags: str, message: str):
    with pytest.raises(ValueError, match=message):
        check_line([*LINE, *flags.split()])


def test_mindios_checkpoint_after_a_fault_is_accepted_and_its_repairs_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """HIGH_AVAILABILITY, which MindSpeed-LLM reads later than this, counts as the flags do."""
    monkeypatch.delenv("HIGH_AVAILABILITY", raising=False)
    flag = "--enable-high-availability"
    assert check_line([*LINE, flag]) == []
    assert copies_of_optimizer(parsed(LINE)[1]) == 1
    fp32 = without("--bf16", "--use-distributed-optimizer")
    for line, words in ((without("--save", "--save-interval"), "without --save"), (fp32, "in fp32")):
        with pytest.raises(ValueError, match=f"{flag} {words}"):
            check_line([*line, flag])
        check_line(line)
    for strategy, refused in (("recover", "worker-reboot"), ("dump,Retry", "hbmfault-repair"), ("elastic-training", "elastic-training")):
        monkeypatch.setenv("HIGH_AVAILABILITY", strategy)
        with pytest.raises(ValueError, match=f"--enable-{refused}: .*set HIGH_AVAILABILITY to nothing but dump"):
            check_line(LINE)
    monkeypatch.setenv("HIGH_AVAILABILITY", "dump")
    assert check_line(LINE) == []
    (tmp_path / "mindio_acp.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match="--enable-high-availability where mindio_acp is installed: .*uninstall mindio_acp"):
        check_line(LINE)


@pytest.mark.parametrize("world, tp, same", [(8, 8, 1), (24, 8, 3), (8, 4, 0), (16, 8, 0)])
def test_mindio_needs_an_even_number_of_ranks_with_the_same_weights(world: int, tp: int, same: int):
    _, arguments = parsed([*good_line(parallel={"tp": tp}), "--enable-high-availability"])
    arguments.world_size = world
    assert copies_of_optimizer(arguments) == 2
    if same:
        with pytest.raises(ValueError, match=f"on {world} processes with tp={tp} pp=1: {same} of them have the same weights"):
            check_replicas(arguments)
    else:
        check_replicas(arguments)


LACKING = [
    ("--vita-data-mixture", "--vita-data-mixture is missing"),
    ("--global-batch-size", "--global-batch-size is missing"),
    ("--swiglu", "--swiglu is missing: every decoder here has it"),
    ("--add-qkv-bias", "--add-qkv-bias is missing; the decoder is of the family qwen2"),
    ("--disable-bias-linear", "--disable-bias-linear is missing"),
    ("--padded-vocab-size", "--padded-vocab-size is missing"),
    ("--sequence-parallel", "--sequence-parallel is missing"),
    ("--attention-dropout", r"--attention-dropout 0.1 \(the default\): .*use 0.0"),
    ("--bf16", "--use-distributed-optimizer in fp32: Megatron could not load"),
    ("--save-interval", "--save without --save-interval"),
]


@pytest.mark.parametrize("flag, message", LACKING, ids=[flag for flag, _ in LACKING])
def test_a_flag_that_is_missing_is_asked_for(flag: str, message: str):
    with pytest.raises(ValueError, match=message):
        check_line(without(flag))


def test_flags_are_checked_against_the_family_of_the_recipe():
    model = {"preset": "qwen3-4b"}
    line, language = good_line(model=model), recipe_from_dict({"model": model}).model.language
    assert check_line(line, language) == []
    for changed, message in (
        ([*line, "--add-qkv-bias"], "--add-qkv-bias: the decoder is of the family qwen3 .*leave it out"),
        ([word for word in line if word != "--qk-layernorm"], "--qk-layernorm is missing; the decoder is of the family qwen3"),
        ([*line, "--kv-channels", "80"], "--kv-channels 80: the heads are 128 wide"),
        ([word for word in line if word not in ("--kv-channels", "128")], "--kv-channels 128 is missing; .*whose heads are 128 wide"),
    ):
        with pytest.raises(ValueError, match=message):
            check_line(changed, language)


def test_all_problems_come_at_once():
    with pytest.raises(ValueError) as error:
        check_line([*without("--swiglu"), "--fp16", "--reset-attention-mask"])
    assert all(flag in str(error.value) for flag in ("--fp16", "--swiglu", "--reset-attention-mask"))


def test_what_has_no_effect_is_said_once_and_passes():
    flags = "--use-fused-ring-attention-update --use-flash-attn --shape-order BSND --split 100,0,0 --num-workers 4"
    notes = check_line([*LINE, *flags.split(), "--sparse-mode", "2"])
    expected = ["--" + words for words in flags.removeprefix("--").split(" --")]
    assert sorted(note.split(" has no effect here: ")[0] for note in notes) == sorted(expected)
    assert check_line([*LINE, "--shape-order", "SBH"]) == [], "upstream's default"


def test_iterations_of_an_evaluation_that_fit_the_packs_pass():
    held_out = ["--vita-eval-mixture", "m.yaml", "--vita-eval-packs", "529"]
    assert check_line([*LINE, *held_out, "--eval-iters", "2", "--eval-interval", "10"]) == []
    assert check_line([*without("--eval-iters"), *held_out]) == [], "left out, they are set once the data was opened"


def test_layers_that_do_not_divide_are_refused_unless_the_stages_are_named():
    line = good_line(parallel={"tp": 1, "pp": 5})  # 48 layers
    with pytest.raises(ValueError, match="--num-layers 48 over --pipeline-model-parallel-size 5: .*--decoder-first-pipeline-num-layers"):
        check_line(line)
    assert check_line([*line, "--decoder-first-pipeline-num-layers", "8"]) == []
    assert check_line([*line, "--decoder-first-pipeline-num-layers", "10", "--decoder-last-pipeline-num-layers", "8"]) == []
    with pytest.raises(ValueError, match="7 of them on stages that have a number of their own: the other stages must share"):
        check_line([*line, "--decoder-first-pipeline-num-layers", "7"])


def save(folder: Path, tp: int = 2, pp: int = 1, step: int = 4, **left_out: bool) -> Path:
    """What a run of MindSpeed-LLM leaves behind, without weights."""
    content = {"model": {}, "optimizer": {}, "opt_param_scheduler": {}, "rng_state": []}
    for key in left_out:
        del content[key]
    for tensor in range(tp):
        for stage in range(pp):
            name = f"mp_rank_{tensor:02d}" + (f"_{stage:03d}" if pp > 1 else "")
            path = folder / f"iter_{step:07d}" / name / "model_optim_rng.pt"
            path.parent.mkdir(parents=True)
            torch.save(content, path)
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
    return folder


def loading(folder: Path, *flags: str, tp: int = 2) -> list[str]:
    """A line that loads a folder."""
    return check_line([*good_line(parallel={"tp": tp}), "--load", str(folder), *flags])


def test_finetune_that_would_find_nothing_to_load_is_refused(tmp_path: Path):
    loading(tmp_path)  # a first start: --load is where --save writes to
    with pytest.raises(ValueError, match=f"--load {tmp_path} --finetune: no checkpoint there, as it holds no latest_checkpointed_iter"):
        loading(tmp_path, "--finetune")
    with pytest.raises(ValueError, match="--finetune without --load: name the folder"):
        check_line([*without("--load"), "--finetune"])
    with pytest.raises(ValueError, match="--pretrained-checkpoint /nowhere: no checkpoint there"):
        loading(tmp_path, "--pretrained-checkpoint", "/nowhere")
    loading(save(tmp_path), "--finetune")


def test_another_tensor_parallel_size_is_refused_before_the_start_and_names_vita_convert(tmp_path: Path):
    save(tmp_path)
    assert loading(tmp_path) == []
    for flags, advice in (((), "--optimizer --output DIR and continue in DIR"), (("--finetune",), "--output DIR and start from DIR")):
        expected = f"with tp=2 pp=1, this run has tp=4 pp=1, .*--from {tmp_path} --to mindspeed-llm --tp 4 --pp 1 {advice}"
        with pytest.raises(ValueError, match=expected):
            loading(tmp_path, *flags, tp=4)
    with pytest.raises(ValueError, match="was saved with tp=2 pp=2, this run has tp=2 pp=1"):
        loading(save(tmp_path / "stages", pp=2))
    with pytest.raises(ValueError, match="iter_0000003 holds no mp_rank"):
        loading(tmp_path, "--ckpt-step", "3")


def save_distributed(folder: Path, **left_out: bool) -> Path:
    """What --ckpt-format torch_dist leaves behind, without tensors: tp 2, pp 2."""
    iteration = folder / "iter_0000004"
    iteration.mkdir(parents=True)
    (iteration / ".metadata").write_bytes(b"")
    told = argparse.Namespace(tensor_model_parallel_size=2, pipeline_model_parallel_size=2, no_save_rng="rng_state" in left_out)
    content = {"args": told, "opt_param_scheduler": {}}
    torch.save({key: value for key, value in content.items() if key not in left_out}, iteration / "common.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text("4")
    return folder


def test_a_distributed_checkpoint_continues_at_other_sizes_without_random_states(tmp_path: Path):
    folder, told = save_distributed(tmp_path / "a"), ["--ckpt-format", "torch_dist"]
    with pytest.raises(ValueError, match="was saved with --ckpt-format torch_dist; give the same, or --auto-detect-ckpt-format"):
        loading(folder)
    with pytest.raises(ValueError, match="was saved with tp=2 pp=2, this run has tp=4 pp=1, .*add --no-load-rng"):
        loading(folder, *told, tp=4)
    assert loading(folder, *told, "--no-load-rng", tp=4) == []
    assert loading(folder, "--auto-detect-ckpt-format", "--finetune") == []
    with pytest.raises(ValueError, match="was saved with --no-save-optim"):
        loading(save_distributed(tmp_path / "b", opt_param_scheduler=True), *told, "--no-load-rng")
    with pytest.raises(ValueError, match="was saved with --no-save-rng"):
        loading(save_distributed(tmp_path / "c", rng_state=True), *told)


def test_a_torch_that_cannot_write_distributed_checkpoints_is_refused(monkeypatch: pytest.MonkeyPatch):
    """Its private function has one argument more than core 0.12.1 gives it."""
    from torch.distributed.checkpoint import filesystem

    told = argparse.Namespace(ckpt_format="torch_dist")
    monkeypatch.setattr(filesystem, "_write_item", lambda transforms, stream, data, item, key, serialization_format: None)
    with pytest.raises(ValueError, match="does not work with torch .*vita convert --optimizer"):
        check_writer(told)
    check_writer(argparse.Namespace(ckpt_format="torch"))
    monkeypatch.setattr(filesystem, "_write_item", lambda transforms, stream, data, item, key: None)
    check_writer(told)


def test_other_virtual_stages_are_refused_before_the_start(tmp_path: Path):
    save(tmp_path, tp=1, pp=2)
    line = [*good_line(parallel={"tp": 1, "pp": 2}), "--load", str(tmp_path)]
    assert check_line(line) == []
    with pytest.raises(ValueError, match="was saved with 1 virtual stages, this run has 3, .*--to native --output DIR and checkpoint.init"):
        check_line([*line, "--num-layers-per-virtual-pipeline-stage", "8"])


def test_continuing_without_a_saved_optimizer_is_refused_unless_it_is_not_asked_for(tmp_path: Path):
    save(tmp_path / "a", opt_param_scheduler=True, optimizer=True)
    with pytest.raises(ValueError, match="was saved with --no-save-optim, .*add --no-load-optim"):
        loading(tmp_path / "a")
    assert loading(tmp_path / "a", "--no-load-optim") == []
    assert loading(tmp_path / "a", "--finetune") == []
    save(tmp_path / "b", rng_state=True)
    with pytest.raises(ValueError, match="was saved with --no-save-rng, .*add --no-load-rng"):
        loading(tmp_path / "b")
    assert loading(tmp_path / "b", "--no-load-rng") == []


def test_the_feature_checks_the_recipe_too_and_warms_up_for_whole_steps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    line = [*good_line(data={"mixture": "m.yaml", "seq_length": 1024}, train={"steps": 900, "warmup_fraction": 0.025}), "--use-flash-attn"]
    monkeypatch.setattr(sys, "argv", ["pretrain_vita.py", *line])
    feature = VitaFeature()
    parser, told = parsed(line)
    feature.register_args(parser)
    feature.pre_validate_args(told)
    assert told.lr_warmup_fraction * 900 == pytest.approx(22) and told.calculate_per_token_loss
    assert capsys.readouterr().out == "vita: --use-flash-attn has no effect here: attention is this package's\n"
    told.seq_length = 1023
    with pytest.raises(ValueError, match="data.seq_length=1023 is not a multiple of"):
        feature.pre_validate_args(told)


def test_arguments_are_registered_once_and_a_wrong_word_is_one_line():
    parser = argparse.ArgumentParser()
    for _ in range(2):
        VitaFeature().register_args(parser)
    assert parser.parse_args(["--vita-stage", "2"]).vita_stage == "2"
    with pytest.raises(ValueError, match="command line: unrecognized arguments: --no-such-flag; docs/mindspeed_llm_flags.md lists"):
        parser.parse_args(["--no-such-flag"])


UPSTREAM = """
def validate_args(arguments):
    assert arguments.micro_batch_size is not None
    assert arguments.lr > 0, "a learning rate"

def train_step():
    assert False
"""


def test_upstreams_assertions_about_arguments_become_one_line_and_others_stay(tmp_path: Path):
    (tmp_path / "arguments.py").write_text(UPSTREAM)  # pytest rewrites the assertions of a test's own file
    upstream = runpy.run_path(str(tmp_path / "arguments.py"))
    with pytest.raises(ValueError, match=r"upstream refuses the command line \(.*/arguments.py, line 4\): a learning rate"):
        with arguments_of_upstream():
            upstream["validate_args"](argparse.Namespace(micro_batch_size=1, lr=0))
    with pytest.raises(ValueError, match=r"line 3\): assert arguments.micro_batch_size is not None"):
        with arguments_of_upstream():
            upstream["validate_args"](argparse.Namespace(micro_batch_size=None))
    with pytest.raises(AssertionError), arguments_of_upstream():
        upstream["train_step"]()


def test_an_import_that_upstream_lacks_becomes_one_line_and_others_stay():
    with pytest.raises(ValueError, match=r"MindSpeed does not fit the others: No module named 'mindspeed.*vita patches verify"):
        with imports_of_upstream():
            raise ModuleNotFoundError("No module named 'mindspeed.core.gone'", name="mindspeed.core.gone")
    with pytest.raises(ImportError), imports_of_upstream():
        raise ModuleNotFoundError("No module named 'einops'", name="einops")
