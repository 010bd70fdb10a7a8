"""What test_plugin.py runs where vLLM can be imported."""

from __future__ import annotations

from importlib.metadata import entry_points, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import vllm
from PIL import Image
from torch import nn
from transformers import AutoConfig
from vllm import ModelRegistry
from vllm.config import ModelConfig
from vllm.config.multimodal import MultiModalConfig, MultiModalDummyOptions
from vllm.model_executor.models.interfaces import supports_multimodal, supports_pp
from vllm.multimodal.processing import InputProcessingContext
from vllm.multimodal.processing.context import TimingContext
from vllm.multimodal.processing.inputs import ProcessorInputs

from mindspeed_vita.checkpoint.hf.export import export_hf
from mindspeed_vita.files.safetensors_folder import SafetensorsFolder
from mindspeed_vita.hf.modeling_long_vita import LongVitaProjector
from mindspeed_vita.hf.vision_long_vita import LongVitaVisionModel
from mindspeed_vita.inference.hf_generate import load_hf
from mindspeed_vita.integration.vllm import ARCHITECTURES, TESTED, register
from mindspeed_vita.integration.vllm.media import frames_of
from tests.tiny_checkpoint import TINY, make_tokenizer, random_weights, tiny_recipe

TEXT = "<|im_start|>user\n<image>\nand <video>\n<image>?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    export_hf(random_weights(), tiny_recipe(), folder / "out", tokenizer=make_tokenizer(folder / "tokenizer"))
    register()
    return folder / "out"


@pytest.fixture(scope="module")
def ours(exported: Path) -> Any:
    return load_hf(exported)


@pytest.fixture(scope="module")
def media() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8)) for size in ((40, 80, 3), (28, 28, 3))]
    return {"image": pictures, "video": [draw.integers(0, 256, (3, 30, 40, 3), dtype=np.uint8)]}


@pytest.fixture(scope="module")
def processor(exported: Path, ours: Any) -> Any:
    """vLLM's processor of the model, as its registry makes it."""
    config = AutoConfig.from_pretrained(exported)
    model = ModelRegistry._try_load_model_cls("LongVITAForCausalLM")
    settings = MultiModalConfig(mm_device_do_normalize=model.supports_mm_device_do_normalize)  # what vLLM's ModelConfig does
    model_config = SimpleNamespace(
        model=str(exported), hf_config=config, multimodal_config=settings, get_multimodal_config=lambda: settings,
        trust_remote_code=False, revision=None, get_inputs_embeds_size=lambda: config.hidden_size,
    )  # fmt: skip
    context = InputProcessingContext(model_config=model_config, tokenizer=ours.processor.tokenizer)
    return model._processor_factory.build_processor(context)


def test_the_release_is_the_one_that_the_page_names() -> None:
    assert vllm.__version__ == TESTED == version("vllm")


def test_vllm_finds_the_plugin_by_its_entry_point() -> None:
    found = {point.name: point for point in entry_points(group="vllm.general_plugins")}
    assert found["long_vita"].load() is register


def test_the_registry_knows_both_classes_and_what_they_can_do(exported: Path) -> None:
    register()  # vLLM calls plugins more than once
    assert set(ARCHITECTURES) <= set(ModelRegistry.get_supported_archs())
    for name, base in ARCHITECTURES.items():
        model = ModelRegistry._try_load_model_cls(name)
        assert model.__name__ == name and model.decoder == f"{base}ForCausalLM"
        assert supports_multimodal(model) and supports_pp(model)
        assert ModelRegistry._try_load_model_cls(model.decoder) is not None, "the decoder is vLLM's own"
        assert model._processor_factory.info.__name__ == "LongVitaProcessingInfo"


def test_the_folder_is_read_without_its_own_code(exported: Path) -> None:
    config = AutoConfig.from_pretrained(exported)
    assert type(config).__module__ == "mindspeed_vita.hf.configuration_long_vita" and config.architectures == ["LongVITAForCausalLM"]


def test_vllms_own_configuration_takes_the_folder(exported: Path) -> None:
    config = ModelConfig(model=str(exported), tokenizer=str(exported), dtype="float32", max_model_len=512)
    assert config.architecture == "LongVITAForCausalLM" and config.is_multimodal_model
    assert (config.get_vocab_size(), config.get_head_size(), config.get_total_num_kv_heads()) == (384, 8, 2)
    assert not config.multimodal_config.mm_device_do_normalize, "tiles come normalised"


def test_processing_gives_the_tokens_and_tiles_of_the_exported_processor(processor: Any, ours: Any, media: dict[str, Any]) -> None:
    expected = ours.processor(text=TEXT, images=media["image"], videos=[frames_of(media["video"][0])], return_tensors="pt")
    prompt = ours.processor.tokenizer(TEXT)["input_ids"]
    items = processor.info.parse_mm_data(media, validate=False)
    out = processor.apply(ProcessorInputs(prompt=prompt, mm_data_items=items), TimingContext())
    assert out["prompt_token_ids"] == expected["input_ids"][0].tolist()
    places = {kind: [place.offset for place in found] for kind, found in out["mm_placeholders"].items()}
    assert len(places["image"]) == 2 and len(places["video"]) == 1
    embedded = {
        place.offset + int(index)
        for found in out["mm_placeholders"].values()
        for place in found
        for index in place.is_embed.nonzero().flatten()
    }
    assert sorted(embedded) == sorted(expected["image_indices"][1].flatten().tolist())
    data = out["mm_kwargs"].get_data()
    order = [*data["pixel_values"][:3], *data["pixel_values_videos"], *data["pixel_values"][3:]]
    assert torch.equal(torch.stack(order), expected["images"])


def test_dummy_inputs_are_the_largest_and_fit(processor: Any) -> None:
    info = processor.info
    most = info.get_mm_max_tokens_per_item(4096, {"image": 1, "video": 1})
    assert most == {"image": 5 * 6 + 4, "video": 4 * 6}
    dummies = processor.dummy_inputs
    assert dummies.get_dummy_text({"image": 2, "video": 1}) == "<image><image><video>"
    data = dummies.get_dummy_mm_data(60, {"image": 1, "video": 2}, MultiModalDummyOptions())
    assert data["image"][0].size == (28, 112) and [len(video) for video in data["video"]] == [2, 2]
    assert info.frames_that_fit(60, {"image": 1, "video": 2}) == 2 and info.frames_that_fit(10, {"video": 1}) == 1


def _without_decoder(exported: Path, ours: Any) -> Any:
    """The model without vLLM's decoder, whose kernels do not run here."""
    cls = ModelRegistry._try_load_model_cls("LongVITAForCausalLM")
    model = cls.__new__(cls)
    nn.Module.__init__(model)
    model.config = AutoConfig.from_pretrained(exported)
    model.vision_model, model.vision_projection = LongVitaVisionModel(model.config.vision_config), LongVitaProjector(model.config)
    decoder = ours.model
    model.language_model = nn.Module()
    model.language_model.model, model.language_model.lm_head = nn.Module(), decoder.lm_head.__class__(32, 384, bias=False)
    source = decoder.model
    model.language_model.model.embed_tokens = nn.Embedding(*source.embed_tokens.weight.shape)
    model.language_model.model.layers, model.language_model.model.norm = type(source.layers)(), type(source.norm)(32)
    model.language_model.model.layers.extend(type(layer)(model.config, index) for index, layer in enumerate(source.layers))
    return model


def test_every_weight_of_a_folder_finds_its_place(exported: Path, ours: Any, media: dict[str, Any]) -> None:
    """The decoder's modules are transformers' here; their names are those that vLLM's classes take from a checkpoint."""
    model, stored = _without_decoder(exported, ours), SafetensorsFolder(exported)
    stray = {"unused": torch.zeros(1), "model.unused": torch.zeros(1)}
    loaded = model.load_weights([*stored.items(), *stray.items()])
    assert loaded == {name for name, _ in model.named_parameters()}
    for name, tensor in stored.items():
        mapped = model.hf_to_vllm_mapper.map_name(name)
        assert torch.equal(model.get_parameter(mapped), tensor), name
    tiles = ours.processor(text="<image><image>", images=media["image"], return_tensors="pt")["images"]
    with torch.no_grad():
        expected = ours.model.model.get_image_features(tiles)
        found = model.embed_multimodal(pixel_values=tiles, image_num_tiles=torch.tensor([3, 1]))
        frames = model.embed_multimodal(pixel_values_videos=tiles, video_num_frames=torch.tensor([4]))
    assert [part.shape for part in found] == [(12, TINY.language.hidden_size), (4, TINY.language.hidden_size)]
    assert torch.equal(torch.cat(list(found)), expected.flatten(0, 1)) and torch.equal(frames[0], expected.flatten(0, 1))


def test_a_modality_that_the_model_lacks_is_refused() -> None:
    model = ModelRegistry._try_load_model_cls("LongVITAForCausalLM")
    assert [model.get_placeholder_str(kind, 1) for kind in ("image", "video")] == ["<image>", "<video>"]
    with pytest.raises(ValueError, match="found 'audio' in the prompt; Long-VITA takes pictures and videos"):
        model.get_placeholder_str("audio", 1)
