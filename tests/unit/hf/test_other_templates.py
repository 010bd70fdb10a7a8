"""A model trained with another chat template exports with it: prompt ids, stop tokens and jinja text equal those of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mindspeed_vita.checkpoint.hf.export import export_hf
from mindspeed_vita.checkpoint.hf.processor import read_processor
from mindspeed_vita.data.sample import Message
from mindspeed_vita.data.templates import get_template
from mindspeed_vita.inference.hf_generate import load_processor
from tests.tiny_checkpoint import random_weights, tiny_recipe


@pytest.fixture(scope="module", params=["llama3", "mistral", "vicuna"])
def exported(request: pytest.FixtureRequest, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    from transformers import AutoTokenizer

    name, template = request.param, get_template(request.param)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.add_tokens([*template.special_tokens, template.pad_token], special_tokens=True)
    tokenizer.pad_token = template.pad_token
    folder = tmp_path_factory.mktemp("exported") / name
    export_hf(random_weights(), tiny_recipe(template=name), folder, tokenizer=tokenizer)
    return name, folder


def _prompt(processor: Any, talk: list[Message], picture: Image.Image) -> list[int]:
    messages = [{"role": message.role, "content": message.content} for message in talk]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(text=text, images=[picture])["input_ids"][0]


def test_prompt_ids_equal_those_of_training(exported: tuple[str, Path]) -> None:
    from transformers import AutoProcessor

    name, folder = exported
    talk = [Message("user", "<image>\nWhat?"), Message("assistant", "A cat. "), Message("user", "How many?")]
    loaded = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    ids, supervised = get_template(name).encode([*talk, Message("assistant", "")], loaded.tokenizer)
    while supervised[-1]:
        ids.pop(), supervised.pop()
    tag = loaded.tokenizer.convert_tokens_to_ids("<image>")
    picture = Image.new("RGB", (28, 28))
    for processor in (loaded, load_processor(folder)):
        found = _prompt(processor, talk, picture)
        place = ids.index(tag)
        assert found[:place] == ids[:place] and found[place + 6 :] == ids[place + 1 :], "one tile: 4 tokens and the two around them"


def test_assistant_mask_equals_what_training_supervises(exported: tuple[str, Path]) -> None:
    name, folder = exported
    talk = [Message("user", "What?"), Message("assistant", "A cat. "), Message("user", "How many?"), Message("assistant", "Two.")]
    processor = load_processor(folder)
    ids, supervised = get_template(name).encode(talk, processor.tokenizer)
    messages = [{"role": message.role, "content": message.content} for message in talk]
    found = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert found["input_ids"] == [ids] and found["assistant_masks"] == [list(map(int, supervised))]


def test_what_ends_an_answer_and_what_is_read_back(exported: tuple[str, Path]) -> None:
    name, folder = exported
    template, tokenizer = get_template(name), load_processor(folder).tokenizer
    stop = tokenizer.convert_tokens_to_ids(template.stop_token)
    assert stop in json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.pad_token == template.pad_token
    assert read_processor(folder).template == name
