"""The processor at its edges: each works, or says what it takes."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

HEAD, TAIL = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
CALL = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}


@pytest.fixture
def wide(world: Path) -> str:
    return str(world / "wide.png")


def test_pictures_in_every_form(processor: Any, wide: str) -> None:
    content = Path(wide).read_bytes()
    with open(wide, "rb") as file:
        forms = [content, bytearray(content), memoryview(content), io.BytesIO(content), file, Path(wide), Image.open(wide)]
        found = [processor(text="<image>", images=form)["images"] for form in forms]
    assert all(np.array_equal(tiles, found[0]) for tiles in found) and len(found[0]) == 3


def test_pictures_nested_and_flat(processor: Any, wide: str) -> None:
    texts = ["<image>", "<image> and <image>"]
    expected = processor(text=texts, images=[wide, wide, wide], return_tensors="pt")
    for images in ([[wide], [wide, wide]], ((wide,), (wide, wide)), [[wide, wide, wide]], [[wide], wide, wide]):
        found = processor(text=texts, images=images, return_tensors="pt")
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    tiled = processor.image_processor(images=[[wide], [wide]])
    assert tiled["num_tiles"] == [3, 3] == processor.image_processor(images=[wide, wide])["num_tiles"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"text": []}, "found an empty list as `text`"),
        ({"text": [["a"]]}, "found list as `text`; expected a text"),
        ({"text": [{"role": "user", "content": "Hi"}]}, "for messages use apply_chat_template"),
        ({"text": "<image>", "images": [[]]}, "found 1 <image> tags for 0 images"),
        ({"text": "<image>", "images": io.BytesIO(b"")}, "gives nothing more to read; rewind it"),
        ({"text": "<image>", "images": io.StringIO("a")}, "open the file in binary mode"),
        ({"text": "<image>", "images": b"no picture"}, "'of 10 bytes' cannot be read"),
        ({"text": "<image>", "images": {"url": "a.png"}}, "found a dict as picture; expected a path"),
        ({"text": "<video>", "videos": "clip", "num_frames": 0}, "num_frames is 0; expected a number above 0"),
        ({"text": "<video>", "videos": "clip", "fps": -1}, "fps is -1; expected a number above 0"),
        ({"text": "<video>", "videos": b"mp4"}, "found a bytes as video; expected the path"),
        ({"text": "<video>", "videos": [io.BytesIO(b"mp4")]}, "found a BytesIO as video; expected the path"),
    ],
)
def test_what_it_does_not_take(processor: Any, call: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(**call)


def test_no_pictures(processor: Any) -> None:
    with pytest.raises(ValueError, match="found no pictures"):
        processor.image_processor(images=[])
    empty = processor(text=["", "Hi"], return_tensors="pt")
    assert empty["attention_mask"].sum(1).tolist() == [0, empty["input_ids"].shape[1]]


def test_image_url_parts_and_content_none(processor: Any, wide: str) -> None:
    address = "data:image/png;base64," + base64.b64encode(Path(wide).read_bytes()).decode()
    parts = {
        "object": {"type": "image_url", "image_url": {"url": address}},
        "text": {"type": "image_url", "image_url": address},
        "image": {"type": "image", "image": wide},
    }
    expected = processor(text=f"{HEAD}<image>\nWhat?{TAIL}", images=wide, return_tensors="pt")
    for part in parts.values():
        found = processor.apply_chat_template([{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}], **CALL)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    for message in ({"role": "assistant", "content": None}, {"role": "assistant"}):
        text = processor.apply_chat_template([{"role": "user", "content": "Hi"}, message], tokenize=False)
        assert text == f"{HEAD}Hi{TAIL}<|im_end|>\n"


@pytest.mark.parametrize(
    ("conversation", "message"),
    [
        ([], "found a conversation without messages"),
        ("Hi", "found a str as conversation"),
        ([{"content": "Hi"}], "found a message with the keys 'content'; expected 'role'"),
        ([{"role": "user", "content": 3}], "content is a int; expected text"),
        ([{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}], "part of type 'audio'; Long-VITA takes text"),
        ([{"role": "user", "content": [{"text": "Hi"}]}], "part of type None; Long-VITA takes"),
        ([{"role": "user", "content": [{"type": "text"}]}], "part of type 'text' without a text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "'image_url' without an address"),
    ],
)
def test_messages_it_does_not_take(processor: Any, conversation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template(conversation, tokenize=False)


@pytest.mark.parametrize("marked", [False, True], ids=["own-template", "generation-tags"])
def test_assistant_tokens_mask(processor: Any, wide: str, marked: bool) -> None:
    """The turns of the assistant, in a batch with padding, pictures and an answer that begins with a line feed."""
    picture = {"type": "image", "image": wide}
    talks = [
        [("user", [picture, {"type": "text", "text": "What?"}]), ("assistant", "\nA cat. 猫"), ("user", [picture]), ("assistant", "No.")],
        [("user", "Hi"), ("assistant", "Yes. ")],
    ]
    messages = [[{"role": role, "content": content} for role, content in talk] for talk in talks]
    template = None
    if marked:
        body = "{% for part in message['content'] %}{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
        body += "{{ '<|im_end|>\n' }}"
        template = (
            "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
            "{% generation %}" + body + "{% endgeneration %}{% else %}" + body + "{% endif %}{% endfor %}"
        )
    call = {name: value for name, value in CALL.items() if name != "add_generation_prompt"}
    found = processor.apply_chat_template(messages, template, return_assistant_tokens_mask=True, **call)
    masks = torch.as_tensor(found["assistant_masks"])
    assert masks.shape == found["input_ids"].shape
    said = [processor.tokenizer.decode(row[mask.bool()]) for row, mask in zip(found["input_ids"], masks)]
    assert said == ["\nA cat. 猫<|im_end|>\nNo.<|im_end|>\n", "Yes. <|im_end|>\n"]
    with pytest.raises(ValueError, match="return_dict"):
        processor.apply_chat_template(messages, tokenize=False, return_assistant_tokens_mask=True)
