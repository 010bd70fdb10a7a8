"""Flags that would take attention, context parallelism, the data or the loss away are refused, each with what to change."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.integration.mindspeed_llm.arguments import arguments_from_recipe
from mindspeed_vita.integration.mindspeed_llm.feature import VitaFeature
from mindspeed_vita.integration.mindspeed_llm.refusals import check_arguments, check_line

GOOD: dict[str, Any] = {
    "vita_data_mixture": "mixture.yaml",
    "micro_batch_size": 1,
    "global_batch_size": 8,
    "dataloader_type": "single",
    "context_parallel_algo": "megatron_cp_algo",
    "swiglu": True,
    "add_qkv_bias": True,
    "group_query_attention": True,
    "add_bias_linear": False,
    "normalization": "RMSNorm",
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "padded_vocab_size": 152064,
    "optimizer": "adam",
    "tensor_model_parallel_size": 2,
    "sequence_parallel": True,
    "rampup_batch_size": None,
}


def arguments(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{**GOOD, **changes})


def test_a_good_command_line_passes():
    check_arguments(arguments())


BAD = [
    ({"reset_attention_mask": True}, "--reset-attention-mask: .*; packs are isolated with --vita-data-resets true"),
    ({"reset_position_ids": True}, "--reset-position-ids: .*--vita-data-resets true"),
    ({"context_parallel_algo": "ulysses_cp_algo"}, "--context-parallel-algo ulysses_cp_algo: it wraps the attention of every layer"),
    ({"context_parallel_algo": "hybrid_cp_algo"}, "--context-parallel-algo hybrid_cp_algo: .*--vita-parallel-ulysses"),
    ({"context_parallel_algo": "kvallgather_cp_algo"}, "--context-parallel-algo kvallgather_cp_algo"),
    ({"rope_scaling_type": "yarn"}, "--rope-scaling-type: .*--vita-model-language-rope-scaling-kind"),
    ({"sliding_window": 4096}, "--sliding-window"),
    ({"multi_latent_attention": True}, "--multi-latent-attention"),
    ({"data_path": ["x"]}, "--data-path: data comes from --vita-data-mixture"),
    ({"vita_data_mixture": None}, "--vita-data-mixture is missing"),
    ({"micro_batch_size": 2}, "--micro-batch-size 2: one pack is one micro-batch; use 1"),
    ({"global_batch_size": None}, "--global-batch-size is missing"),
    ({"dataloader_type": "cyclic"}, "--dataloader-type cyclic"),
    ({"swiglu": False}, "--swiglu is missing"),
    ({"add_bias_linear": True}, "--disable-bias-linear is missing"),
    ({"normalization": "LayerNorm"}, "--normalization LayerNorm: .*RMSNorm"),
    ({"attention_dropout": 0.1}, "--attention-dropout 0.1: .*use 0.0"),
    ({"padded_vocab_size": None}, "--padded-vocab-size is missing"),
    ({"num_layers_per_virtual_pipeline_stage": 2}, "--num-layers-per-virtual-pipeline-stage"),
    ({"schedules_method": "dualpipev"}, "--schedules-method dualpipev"),
    ({"noop_layers": "1,2"}, "--noop-layers"),
    ({"num_experts": 8}, "--num-experts"),
    ({"fp16": True}, "--fp16: use --bf16"),
    ({"use_torch_fsdp2": True}, "--use-torch-fsdp2: use --use-distributed-optimizer"),
    ({"layerzero": True}, "--layerzero"),
    ({"optimizer": "muon"}, "--optimizer: .*use adam"),
    ({"optimizer_selection": "fused_muon"}, "--optimizer"),
    ({"train_samples": 10}, "--train-samples: use --train-iters"),
    ({"sequence_parallel": False}, "--sequence-parallel is missing"),
]


@pytest.mark.parametrize("changes, message", BAD, ids=lambda value: str(value)[:50])
def test_a_flag_is_refused_with_what_to_change(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        check_arguments(arguments(**changes))


def test_finetune_that_would_find_nothing_to_load_is_refused(tmp_path: Path):
    check_arguments(arguments(load=str(tmp_path)))  # a first start: --load is where --save writes to
    with pytest.raises(ValueError, match=f"--load {tmp_path} --finetune: no checkpoint there, as it holds no latest_checkpointed_iter"):
        check_arguments(arguments(load=str(tmp_path), finetune=True))
    with pytest.raises(ValueError, match="--finetune without --load: name the folder"):
        check_arguments(arguments(load=None, finetune=True))
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("500")
    check_arguments(arguments(load=str(tmp_path), finetune=True))


def test_a_line_that_nobody_parsed_is_refused_alike():
    recipe = recipe_from_dict({"stage": 2, "model": {"preset": "14b"}, "parallel": {"tp": 8}, "data": {"mixture": "m.yaml"}})
    line = arguments_from_recipe(recipe)
    check_line([*line, "--swap-attention", "--lr", "3e-5", "--norm-epsilon=1e-6"])
    for words, message in (
        (["--neat-pack"], "--neat-pack: packs are planned"),
        (["--attention-dropout=0.1"], "--attention-dropout 0.1"),
        (["--context-parallel-algo", "ulysses_cp_algo"], "--context-parallel-algo ulysses"),
        (["--data-path", "1", "a", "2", "b"], "--data-path: data comes"),
        (["--finetune"], "--finetune: no checkpoint there"),
    ):
        with pytest.raises(ValueError, match=message):
            check_line([*line, *words])


def test_all_problems_come_at_once():
    with pytest.raises(ValueError) as error:
        check_arguments(arguments(fp16=True, swiglu=False, reset_attention_mask=True))
    assert all(flag in str(error.value) for flag in ("--fp16", "--swiglu", "--reset-attention-mask"))


def test_the_feature_checks_the_recipe_too_and_warms_up_for_whole_steps():
    told = arguments(
        num_layers=48, hidden_size=5120, num_attention_heads=40, num_query_groups=8, ffn_hidden_size=13824, seq_length=1024,
        tensor_model_parallel_size=2, pipeline_model_parallel_size=1, context_parallel_size=1, train_iters=900, lr=1e-5, min_lr=1e-7,
        lr_warmup_fraction=0.025, lr_decay_iters=None, untie_embeddings_and_output_weights=True, bf16=True, recompute_granularity=None,
        load=None, vita_model_preset="14b", world_size=2,
    )  # fmt: skip
    VitaFeature().pre_validate_args(told)
    assert told.lr_warmup_fraction * 900 == pytest.approx(22) and told.calculate_per_token_loss
    told.seq_length = 1023
    with pytest.raises(ValueError, match="data.seq_length=1023 is not a multiple of"):
        VitaFeature().pre_validate_args(told)


def test_arguments_are_registered_once():
    parser = argparse.ArgumentParser()
    for _ in range(2):
        VitaFeature().register_args(parser)
    assert parser.parse_args(["--vita-stage", "2"]).vita_stage == "2"
