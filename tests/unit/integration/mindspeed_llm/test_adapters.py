"""MindSpeed-LLM's model with adapters: what its checkpoints hold and take, and that they stay fp32 when Megatron casts the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mindspeed_vita.checkpoint.adapter.rank_files import read_rank_adapters
from mindspeed_vita.checkpoint.adapter.source import open_adapter
from mindspeed_vita.config import Recipe, recipe_to_dict
from mindspeed_vita.engine.session import distributed
from mindspeed_vita.integration.mindspeed_llm.handover import command_line
from mindspeed_vita.models.lora import is_adapter
from mindspeed_vita.platform import get_platform
from tests.tiny_data import TinyData, tiny  # noqa: F401 - a fixture

LORA = {"rank": 4, "parts": ["language", "vision", "projector"], "base": "base"}


@pytest.fixture(scope="module")
def recipe(tiny: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Recipe:  # noqa: F811 - the fixture above
    return tiny.recipe(tmp_path_factory.mktemp("run"), lora=LORA)


def test_its_checkpoints_hold_adapters_alone_and_give_them_back(recipe: Recipe, tmp_path: Path):
    with distributed(recipe, get_platform()) as layout:
        from mindspeed_vita.integration.mindspeed_llm.model import MindSpeedVitaModel
        from mindspeed_vita.models.language import language_transformer_config
        from mindspeed_vita.parallel.build import model_arguments, with_adapters

        language = recipe.model.language
        sizes = {"init_std": 0.02, "dtype": torch.float32, "tp": 1, "pp": 1, "cp": 1, "init_on_cpu": True}

        def build() -> MindSpeedVitaModel:
            arguments = model_arguments(recipe, layout, torch.device("cpu"))
            model = MindSpeedVitaModel(recipe.model, language_transformer_config(language, **sizes), **arguments)
            return with_adapters(model, recipe, layout)

        saved, loaded = build(), build()
        with torch.no_grad():
            for parameter in saved.parameters():
                parameter.add_(1.0)
        saved.run_state = lambda: {"recipe": recipe_to_dict(recipe)}
        state = saved.state_dict_for_save_checkpoint()
        tensors = [name for name, value in state.items() if isinstance(value, torch.Tensor) and name != "_extra_state"]
        assert len(tensors) == 2 * (2 * 7 + 2 * 4 + 2) and all(map(is_adapter, tensors))
        loaded.load_state_dict(state)
        ours, theirs = dict(saved.named_parameters()), dict(loaded.named_parameters())
        assert all(torch.equal(ours[name], theirs[name]) == is_adapter(name) for name in ours)
        with pytest.raises(ValueError, match="do not fit this architecture"):
            loaded.load_state_dict({name: value for name, value in state.items() if "q_proj" not in name})
        loaded.bfloat16()
        assert {name: p.dtype for name, p in loaded.named_parameters()} == {
            name: torch.float32 if is_adapter(name) else torch.bfloat16 for name in ours
        }
        file = tmp_path / "iter_0000001" / "mp_rank_00" / "model_optim_rng.pt"
        file.parent.mkdir(parents=True)
        torch.save({"model": state}, file)
        found = open_adapter(file.parent.parent)
        assert found.format == "mindspeed-llm" and found.lora == recipe.lora
        matrices = found.read(recipe.model)
        assert all(torch.equal(matrices[name], ours[name]) for name in ours if is_adapter(name))


def test_parts_of_tensor_parallel_ranks_and_pipeline_stages_become_whole(tmp_path: Path):
    layer = "decoder.layers.0.self_attention"
    for stage in range(2):
        for tensor in range(2):
            state = {
                f"{layer}.linear_qkv.adapter.q_proj.lora_A": torch.full((2, 3), float(stage)),
                f"{layer}.linear_qkv.adapter.q_proj.lora_B": torch.full((4, 2), float(tensor)),
                f"{layer}.linear_proj.adapter.o_proj.lora_A": torch.full((2, 5), float(tensor)),
                f"{layer}.linear_proj.adapter.o_proj.lora_B": torch.full((6, 2), float(stage)),
            }
            file = tmp_path / f"mp_rank_{tensor:02d}_{stage:03d}" / "model_optim_rng.pt"
            file.parent.mkdir()
            torch.save({"model": state}, file)
    whole, _ = read_rank_adapters(tmp_path)
    name = "language.decoder.layers.1.self_attention.linear_qkv.adapter.q_proj.lora_"
    assert len(whole) == 8 and whole[name + "A"].tolist() == [[1.0] * 3] * 2
    assert whole[name + "B"][:, 0].tolist() == [0.0] * 4 + [1.0] * 4
    cut = whole["language.decoder.layers.0.self_attention.linear_proj.adapter.o_proj.lora_A"]
    assert cut[0].tolist() == [0.0] * 5 + [1.0] * 5
    torch.save({"model": {**state, f"{layer}.linear_qkv.adapter.q_proj.lora_A": torch.zeros(2, 3)}}, file)
    with pytest.raises(ValueError, match="should be the same on every tensor-parallel rank"):
        read_rank_adapters(tmp_path)


def test_a_run_of_adapters_loads_its_base_itself(tiny: TinyData, tmp_path: Path):  # noqa: F811 - the fixture above
    start = tmp_path / "start"
    start.mkdir()
    (start / "latest_checkpointed_iteration.txt").write_text("3")
    told = tiny.recipe(tmp_path / "run", lora={"rank": 4}, checkpoint={"init_from": str(start)})
    line = command_line(told)
    assert "--finetune" not in line and line[line.index("--vita-checkpoint-init-from") + 1] == str(start)
