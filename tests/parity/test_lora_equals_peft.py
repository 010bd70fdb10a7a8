"""Adapters trained here and by peft on the export: the same curve, the same logits, the same files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import pytest
import torch
import torch.nn.functional as F

from mindspeed_vita.checkpoint.adapter.source import open_adapter
from mindspeed_vita.cli.main import main
from mindspeed_vita.config import Recipe
from mindspeed_vita.ops.normalize import normalize_tiles
from tests.integration.conftest import save_fresh_weights
from tests.tiny_data import TinyData, read_metrics, tiny  # noqa: F401 - a fixture

peft = pytest.importorskip("peft", reason="peft is not installed; pip install 'mindspeed_vita[peft]'")

LORA = {"rank": 4, "alpha": 8, "rslora": True, "parts": ["language", "vision", "projector"]}
STEPS = 20


@pytest.fixture(scope="module")
def folders(tiny: TinyData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:  # noqa: F811 - the fixture above
    """The base, its export, adapters after three steps, and those as peft's files."""
    from mindspeed_vita.engine.loop import train

    folder = tmp_path_factory.mktemp("peft")
    made = {name: folder / name for name in ("base", "export", "start", "peft", "run")}
    save_fresh_weights(tiny.recipe(made["base"]), made["base"])
    assert main(["convert", "--from", str(made["base"]), "--to", "hf", "--output", str(made["export"])]) == 0
    train(recipe(tiny, made["start"], made["base"], steps=3))
    command = ["convert", "--from", str(made["start"]), "--to", "peft", "--output", str(made["peft"]), "--base", str(made["export"])]
    assert main(command) == 0
    return made


def recipe(tiny: TinyData, directory: Path, start: Path, steps: int = STEPS) -> Recipe:  # noqa: F811 - the fixture above
    """Packs of one document each, which transformers computes without a mask of its own."""
    settings = {"steps": steps, "lr": 1e-2}
    return tiny.recipe(directory, lora=LORA, train=settings, checkpoint={"init_from": str(start)}, data={"resets": False})


def exported(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)


def packs(told: Recipe) -> Iterator[Any]:
    """The packs of a run, in its order."""
    from mindspeed_vita.engine.feed import open_dataset, open_loader
    from mindspeed_vita.engine.session import distributed
    from mindspeed_vita.platform import get_platform

    with distributed(told, get_platform()) as layout:
        loader = iter(open_loader(open_dataset(told, layout), told, layout, start_pack=0))
        yield from (next(loader) for _ in range(told.train.steps * told.train.global_batch))


def logits_of(model: Any, pack: Any, tokens_per_tile: int) -> torch.Tensor:
    """Of the pack's only document, [tokens, vocabulary]."""
    end = int(pack.cu_seqlens[1])
    media: dict[str, Any] = {}
    if len(pack.tiles_NCHW):
        positions_NL = pack.tile_first_token[:, None] + torch.arange(tokens_per_tile)
        media = {"images": normalize_tiles(pack.tiles_NCHW), "image_indices": torch.stack([torch.zeros_like(positions_NL), positions_NL])}
    return model(input_ids=pack.tokens_T[None, :end], use_cache=False, **media).logits[0]


def peft_curve(model: Any, told: Recipe, rates: list[float], decays: float = 0.0) -> list[float]:
    """Losses of peft's layers under torch's AdamW: the sum over tokens, divided by the supervised tokens of the step."""
    train, losses = told.train, []
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, betas=(train.beta1, train.beta2), eps=train.eps, weight_decay=decays)
    dealt = list(packs(told))
    model.train()
    for step in range(train.steps):
        batch = dealt[step * train.global_batch : (step + 1) * train.global_batch]
        count = sum(pack.loss_count for pack in batch)
        total = torch.zeros(())
        for pack in batch:
            logits = logits_of(model, pack, told.model.tokens_per_tile)
            loss = F.cross_entropy(logits.float(), pack.labels_T[: len(logits)], ignore_index=-100, reduction="sum") / count
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(trainable, train.clip_grad)
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(total))
    return losses


def test_pefts_own_training_on_the_export_gives_the_same_curve_and_its_files_come_back(
    tiny: TinyData,  # noqa: F811 - the fixture above
    folders: dict[str, Path],
    tmp_path: Path,
):
    from mindspeed_vita.engine.loop import train

    told = recipe(tiny, folders["run"], folders["start"])
    train(told)
    ours = read_metrics(folders["run"])
    model = peft.PeftModel.from_pretrained(exported(folders["export"]), folders["peft"], is_trainable=True)
    theirs = peft_curve(model, told, read_metrics(folders["run"], "lr"))
    assert len(ours) == STEPS and ours[-1] < 0.95 * ours[0]
    assert ours == pytest.approx(theirs, rel=1e-5)  # worst seen: 1.3e-7
    print("worst relative difference of a loss", max(abs(a - b) / b for a, b in zip(ours, theirs)))
    # what peft saves after its training is what ours would be
    model.save_pretrained(tmp_path / "trained")
    back = ["convert", "--from", str(tmp_path / "trained"), "--to", "native", "--output", str(tmp_path / "back")]
    assert main([*back, "--base", str(folders["export"])]) == 0
    found, expected = (open_adapter(folder).read(told.model) for folder in (tmp_path / "back", folders["run"]))
    assert set(found) == set(expected)
    worst = max(float((found[name] - expected[name]).abs().max()) for name in expected)
    print("worst difference of a matrix", worst)
    assert worst < 2e-4  # AdamW divides by gradients that are nearly 0


def test_merged_weights_give_the_logits_of_the_adapters(
    tiny: TinyData,  # noqa: F811 - the fixture above
    folders: dict[str, Path],
    tmp_path: Path,
):
    with torch.no_grad():
        adapted = peft.PeftModel.from_pretrained(exported(folders["export"]), folders["peft"]).eval()
        assert main(["convert", "--from", str(folders["peft"]), "--merge", "--to", "hf", "--output", str(tmp_path / "merged")]) == 0
        merged, plain = exported(tmp_path / "merged").eval(), exported(folders["export"]).eval()
        told = recipe(tiny, tmp_path, folders["base"], steps=1)
        for pack in packs(told):
            expected, found, without = (logits_of(model, pack, told.model.tokens_per_tile) for model in (adapted, merged, plain))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            assert not torch.allclose(without, expected, rtol=1e-2, atol=1e-2)


def test_conversion_to_peft_and_back_changes_nothing(folders: dict[str, Path], tmp_path: Path, tiny: TinyData):  # noqa: F811 - a fixture
    back = ["convert", "--from", str(folders["peft"]), "--to", "native", "--output", str(tmp_path / "back")]
    assert main(back) == 0
    model = recipe(tiny, tmp_path, folders["base"]).model
    before, after = open_adapter(folders["start"]), open_adapter(tmp_path / "back")
    ours, theirs = before.read(model), after.read(model)
    assert list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert after.lora.base_fingerprint == before.lora.base_fingerprint and after.lora.scale == before.lora.scale


def test_the_recipes_settings_make_pefts_own_layers_of_the_same_names(folders: dict[str, Path], tiny: TinyData, tmp_path: Path):  # noqa: F811
    from safetensors.torch import load_file

    from mindspeed_vita.integration.hf_trainer.adapters import apply_adapters

    told = recipe(tiny, tmp_path, folders["base"]).lora
    model = apply_adapters(exported(folders["export"]), told)
    model.save_pretrained(tmp_path / "fresh")
    fresh, converted = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "fresh", folders["peft"]))
    assert {name: tensor.shape for name, tensor in fresh.items()} == {name: tensor.shape for name, tensor in converted.items()}
    with pytest.raises(ValueError, match="lora.rank is 0"):
        apply_adapters(model, type(told)())


def test_what_only_peft_computes_is_refused_with_its_name(folders: dict[str, Path], tiny: TinyData, tmp_path: Path):  # noqa: F811 - a fixture
    for settings, message in (
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa .it changed the base's weights; save it in peft with path_initial"),
        ({"init_lora_weights": "olora"}, "init_lora_weights=olora .it changed the base's weights"),
        ({"use_dora": True}, "use_dora=True .DoRA; peft's own code serves it"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"bias": "all"}, "bias=all"),
    ):
        config = peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **settings})
        folder = tmp_path / next(iter(settings))
        peft.get_peft_model(exported(folders["export"]), config).save_pretrained(folder)
        with pytest.raises(ValueError, match=message):
            open_adapter(folder)


def test_dora_trains_by_pefts_own_code_and_comes_back_merged(folders: dict[str, Path], tmp_path: Path):
    model = peft.get_peft_model(exported(folders["export"]), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], use_dora=True))
    ids = torch.arange(5, 25)[None]
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1.0)
    losses = []
    for _ in range(3):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[2] < losses[0]
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
        model.merge_and_unload().save_pretrained(tmp_path / "merged")
        names = {"--from": tmp_path / "merged", "--output": tmp_path / "native", "--tokenizer": folders["export"]}
        assert main(["convert", "--to", "native", *(str(word) for pair in names.items() for word in pair)]) == 0
        assert main(["convert", "--from", str(tmp_path / "native"), "--to", "hf", "--output", str(tmp_path / "again")]) == 0
        torch.testing.assert_close(exported(tmp_path / "again").eval()(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)
