"""Generation from a Hugging Face folder: what does not fit is refused by name, before a random weight could answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mindspeed_vita.checkpoint.hf.export import export_hf
from mindspeed_vita.checkpoint.hf.load import import_hf
from mindspeed_vita.files.safetensors_folder import SINGLE
from mindspeed_vita.inference.hf_generate import load_hf, load_processor
from mindspeed_vita.inference.request import ask
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    export_hf(random_weights(), tiny_recipe(), folder / "tiny", tokenizer=make_tokenizer(folder / "tokenizer"))
    return folder / "tiny"


@pytest.fixture
def exported(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def _set(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_missing_and_unexpected_weights_are_named(exported: Path) -> None:
    tensors = load_file(exported / SINGLE)
    tensors["model.extra"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, exported / SINGLE, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="tiny: .*1 missing: model.layers.1.mlp.up_proj.weight; 1 unexpected: model.extra"):
        load_hf(exported)


def test_weights_of_another_architecture_are_named(exported: Path) -> None:
    _set(exported / "config.json", vocab_size=500)
    with pytest.raises(ValueError, match=r"tiny: .*2 of another shape: model.embed_tokens.weight \(384, 32\), expected \(500, 32\)"):
        load_hf(exported)


def test_a_cut_off_file_is_named(exported: Path) -> None:
    content = (exported / SINGLE).read_bytes()
    (exported / SINGLE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="tiny/model.safetensors is not a whole safetensors file"):
        load_hf(exported)


def test_decoding_stops_at_the_end_of_the_turn(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the folder's own files name another eos token, as those of a base model do."""
    _set(exported / "generation_config.json", eos_token_id=0)
    generator = load_hf(exported)
    generator.processor.tokenizer.eos_token = "<|endoftext|>"
    end = generator.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    script = iter([70, 71, end, 72])

    def scripted(hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([[next(script)]]), 384).float()

    monkeypatch.setattr(generator.model.lm_head, "forward", scripted)
    assert generator.generate(ask("What?"), max_new_tokens=9).token_ids == (70, 71)


def test_a_folder_without_processor_files_is_cut_as_import_says(exported: Path) -> None:
    for name in ("processor_config.json", "preprocessor_config.json"):
        (exported / name).unlink()
    processor, imported = load_processor(exported), import_hf(exported).data
    assert (processor.max_frames, processor.max_fps, processor.frame_sampler) == (128, 1.0, "uniform")
    assert (imported.max_frames, imported.max_fps, imported.frame_sampler) == (128, 1.0, "uniform")
    assert processor.image_processor.max_tiles == imported.max_tiles == 12
    assert load_processor(exported, max_frames=3).max_frames == 3


def test_a_broken_processor_file_is_named(exported: Path) -> None:
    (exported / "processor_config.json").write_text("{")
    with pytest.raises(ValueError, match="processor_config.json is not JSON"):
        load_processor(exported)


def test_a_stray_parameter_of_released_weights_is_left_out(exported: Path) -> None:
    save_file({**load_file(exported / SINGLE), "unused": torch.zeros(1)}, exported / SINGLE, metadata={"format": "pt"})
    assert load_hf(exported).model.config.model_type == "long_vita"
