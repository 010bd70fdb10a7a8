"""The tokenizer of prompts: the same tokens as in training, and other threads run while it works."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mindspeed_vita.data.sample import Message
from mindspeed_vita.data.templates import get_template
from mindspeed_vita.inference.free_tokenizer import FreeTokenizer
from tests.tiny_checkpoint import make_tokenizer

TURNS = [
    Message("system", "S"),
    Message("user", "<image>\nWhat is it, naïve 猫?"),
    Message("assistant", "A cat."),
    Message("user", "And\n now?"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("turns", [TURNS, [Message("text", "A document.")]], ids=["chat", "text"])
def test_the_tokens_are_those_of_training(tokenizer: Any, turns: list[Message]) -> None:
    template = get_template("qwen2")
    assert template.encode(turns, FreeTokenizer(tokenizer)) == template.encode(turns, tokenizer)


def test_offsets_are_kept_for_templates_that_tokenise_all_turns_at_once(tokenizer: Any) -> None:
    text = "What is it, naïve 猫?"
    wanted = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    found = FreeTokenizer(tokenizer).backend_tokenizer.encode(text, add_special_tokens=False)
    assert (found.ids, found.offsets) == (wanted.ids, wanted.offsets)


def test_other_threads_run_while_a_long_text_is_tokenised(tokenizer: Any, tmp_path: Path) -> None:
    backend, text = FreeTokenizer(tokenizer).backend_tokenizer, "A photo of a cat on a table. " * 20_000
    started, ended = threading.Event(), threading.Event()

    def encode() -> None:
        started.set()
        backend.encode(text, add_special_tokens=False)
        ended.set()

    thread = threading.Thread(target=encode)
    thread.start()
    started.wait()
    wakes = 0
    while not ended.is_set():
        time.sleep(0.001)
        wakes += 1
    thread.join()
    assert wakes > 10, "with Python's lock held, this thread wakes once or twice"
