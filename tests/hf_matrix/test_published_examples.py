"""The two examples of the published documentation page: its chat template, its messages, its two calls.

The page's model is ours here, its picture comes from a server of this process, and its dtype is left out (the exports are fp32).
device_map="sequential" is left out too: it needs accelerate. trust_remote_code is added, without which no release loads the folder.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, pipeline

from mindspeed_vita.hf.chat_template import CHAT_TEMPLATE

# The page's template is ours with these differences; the checksum is that of the page's text.
DIFFERENCES = {
    "{{ '<|im_start|>' + message['role'] + '\\n' }}": "{{'<|im_start|>' + message['role'] + '\\n'}}",
    "part in": "content in",
    "part[": "content[",
    "content['type'] in ('image', 'image_url')": "content['type'] == 'image'",
    "{{ '<video>\\n' }}": "{{ '<video>' + '\\n'}}{{'<video_path>' + content['video'] + '<video_path>' }}",
    "{{ '<|im_end|>\\n' }}": "{{'<|im_end|>\\n'}}",
    "{{ '<|im_start|>assistant\\n' }}": "{{'<|im_start|>assistant\\n' }}",
    "\\n": "\n",
}
TEMPLATE = functools.reduce(lambda text, pair: text.replace(*pair), DIFFERENCES.items(), CHAT_TEMPLATE)
SHA256 = "588539aad53649ee72785358dda39c5e793faa08100c9521becb99f277e89acc"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(world: Path) -> Iterator[str]:
    """The picture as the page gives it: by an http URL."""
    server = HTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(world)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/wide.png"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_template_is_that_of_the_page() -> None:
    assert hashlib.sha256(TEMPLATE.encode()).hexdigest() == SHA256


@pytest.mark.parametrize("example", ["single image", "images and videos"])
def test_example(exported: str, processor: Any, world: Path, clip: str, address: str, example: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported, trust_remote_code=True, chat_template=TEMPLATE)
    pictures, videos = ([address], []) if example == "single image" else ([address] * 2, [clip] * 2)
    content = [*({"type": "image", "image": item} for item in pictures), *({"type": "video", "video": item} for item in videos)]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": "Describe this."}]}]
    pipe = pipeline("image-text-to-text", model=exported, chat_template=TEMPLATE, trust_remote_code=True)
    outputs = pipe(text=messages, max_new_tokens=5, return_full_text=False)

    tags = "<image>\n" * len(pictures) + "<video>\n" * len(videos)
    prompt = f"<|im_start|>user\n{tags}Describe this.<|im_end|>\n<|im_start|>assistant\n"
    wide = str(world / "wide.png")
    inputs = processor(text=prompt, images=[wide] * len(pictures), videos=videos, return_tensors="pt")
    tokens = pipe.model.generate(**inputs, max_new_tokens=5)[0, inputs["input_ids"].shape[1] :]
    assert outputs[0]["generated_text"] == tokenizer.decode(tokens, skip_special_tokens=True)
    assert ("<video_path>" in tokenizer.apply_chat_template(messages, tokenize=False)) == bool(videos)
