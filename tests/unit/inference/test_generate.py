"""Native generation: prompts end where the answer begins, greedy decoding, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pytest
import torch
from PIL import Image

from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.engine import session
from mindspeed_vita.inference.generate import NativeGenerator, load_generator
from mindspeed_vita.inference.hf_generate import load_processor
from mindspeed_vita.inference.request import ask
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with one step, its tokenizer, and media."""
    folder = tmp_path_factory.mktemp("native")
    make_tokenizer(folder / "tokenizer")
    native.save_full_weights(folder / "run", random_weights(), tiny_recipe(tokenizer=str(folder / "tokenizer")))
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (40, 80, 3), dtype=np.uint8)).save(folder / "wide.png")
    return folder


@pytest.fixture(scope="module")
def generator(folder: Path) -> Iterator[NativeGenerator]:
    borrowed = torch.distributed.is_initialized()
    yield load_generator(folder / "run")
    if not borrowed:
        session.shutdown()


def test_prompt_ends_with_the_header_of_the_answer(generator: NativeGenerator, folder: Path) -> None:
    batch = generator.prompt(ask("What?", [str(folder / "wide.png")]))
    text = generator.tokenizer.decode(batch.tokens_T.tolist())
    assert text.startswith("<|im_start|>user\n<img>") and text.endswith("What?<|im_end|>\n<|im_start|>assistant\n")
    assert len(batch.tiles_NCHW) == 3 and batch.cp_plan.num_tokens == len(batch.tokens_T)


def test_each_token_is_the_best_after_the_whole_sequence(generator: NativeGenerator, folder: Path) -> None:
    request = ask("What?", [str(folder / "wide.png")])
    answer = generator.generate(request, max_new_tokens=4)
    batch = generator.prompt(request)
    assert answer.prompt_tokens == len(batch.tokens_T) and len(answer.token_ids) == 4
    first = generator.logits(generator.inputs(batch), torch.tensor([len(batch.tokens_T) - 1]))[0]
    first[list(generator.ids.placeholders)] = float("-inf")
    assert answer.token_ids[0] == int(first.argmax())
    assert generator.generate(request, max_new_tokens=2).token_ids == answer.token_ids[:2]


def test_tiles_are_encoded_once_for_all_tokens(generator: NativeGenerator, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    hook = generator.model.vision.register_forward_hook(lambda module, arguments, output: encoded.append(len(output)))
    shared, shard = [], generator._shard
    monkeypatch.setattr(generator, "_shard", lambda batch: shared.append(1) or shard(batch))
    answer = generator.generate(ask("What?", [str(folder / "wide.png")]), max_new_tokens=4)
    hook.remove()
    assert len(answer.token_ids) == 4 and encoded == [3] and len(shared) == 1


def test_decoding_stops_at_the_end_of_the_turn(generator: NativeGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    end = generator.tokenizer.convert_tokens_to_ids("<|im_end|>")
    generator.tokenizer.eos_token = "<|endoftext|>"  # as base models have it
    script = iter([70, 71, end, 72])

    def scripted(batch: Any, rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.tensor([next(script)]), 384).float()

    monkeypatch.setattr(generator, "logits", scripted)
    assert generator.generate(ask("What?"), max_new_tokens=9).token_ids == (70, 71)


def test_broken_media_are_named(generator: NativeGenerator, folder: Path) -> None:
    (folder / "broken.png").write_text("no picture")
    (folder / "frames").mkdir()
    with pytest.raises(ValueError, match="broken.png cannot be read as a picture"):
        generator.prompt(ask("What?", [str(folder / "broken.png")]))
    with pytest.raises(ValueError, match="frames folder without .png"):
        generator.prompt(ask("What?", [], [str(folder / "frames")]))
    half = (folder / "wide.png").read_bytes()
    (folder / "cut.png").write_bytes(half[: len(half) // 2])
    with pytest.raises(ValueError, match="cut.png cannot be read as a picture"):
        generator.prompt(ask("What?", [str(folder / "cut.png")]))


def test_folders_of_another_kind_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="holds no whole checkpoint"):
        load_generator(folder)
    with pytest.raises(ValueError, match="is no Long-VITA folder"):
        load_processor(folder)


def test_a_special_token_in_the_prompt_is_refused_as_in_training(generator: NativeGenerator) -> None:
    with pytest.raises(ValueError, match="the text holds a reserved token"):
        generator.prompt(ask("a <|im_end|> b"))
