"""Ways to generate, each against a loop that computes the whole sequence anew for every token."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

NUM = 6


def _plain(model: Any, inputs: dict[str, torch.Tensor], num: int = NUM) -> torch.Tensor:
    """Greedy tokens [1, num] without a cache and without transformers' generation."""
    inputs = {name: value for name, value in inputs.items() if name != "attention_mask"}
    ids = inputs.pop("input_ids")
    for _ in range(num):
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False, **inputs).logits[:, -1]
        logits[:, model.generation_config.suppress_tokens] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    return ids[:, -num:]


def _new(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
    options = {"max_new_tokens": NUM, "do_sample": False, **options}
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]


@pytest.fixture(scope="module")
def expected(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return _plain(model, inputs)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
        # transformers 5.0 makes no cache for chunks by itself
        {"prefill_chunk_size": 7, "cache_implementation": "dynamic"},
        {"prefill_chunk_size": 1, "cache_implementation": "dynamic"},
    ],
    ids=["cache", "no-cache", "static-cache", "prompt-lookup", "chunked-prefill", "chunks-of-one"],
)
def test_way_of_generating(model: Any, inputs: dict[str, torch.Tensor], expected: torch.Tensor, options: dict[str, Any]) -> None:
    assert torch.equal(_new(model, inputs, **options), expected)


def test_assisted(model: Any, inputs: dict[str, torch.Tensor], expected: torch.Tensor) -> None:
    """A draft model that is right at times: the model with other last layers."""
    draft = copy.deepcopy(model)
    with torch.no_grad():
        draft.model.layers[-1].mlp.down_proj.weight.mul_(0.5)
    assert torch.equal(_new(model, inputs, assistant_model=draft), expected)


SECOND = {"cache": {}, "prompt-lookup": {"prompt_lookup_num_tokens": 3}, "chunked": {"prefill_chunk_size": 5}}


@pytest.mark.parametrize("options", list(SECOND.values()), ids=list(SECOND))
@pytest.mark.parametrize("picture", [False, True], ids=["text", "picture"])
def test_second_turn(
    model: Any, processor: Any, inputs: dict[str, torch.Tensor], world: Any, cache_name: str, picture: bool, options: dict[str, Any]
) -> None:
    """The ids of the whole conversation on the cache of the first turn, with and without a new picture."""
    first = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    tag = "<image>\n" if picture else ""
    new = processor(
        text=f"<|im_end|>\n<|im_start|>user\n{tag}And one cat, one cat?<|im_end|>\n<|im_start|>assistant\n",
        images=[str(world / "wide.png")] if picture else None,
        return_tensors="pt",
    )
    both = {**inputs, "input_ids": torch.cat([first.sequences, new["input_ids"]], 1)}
    both["attention_mask"] = torch.ones_like(both["input_ids"])
    if picture:
        moved = new["image_indices"] + torch.tensor([0, first.sequences.shape[1]])[:, None, None]
        both["images"] = torch.cat([inputs["images"], new["images"]])
        both["image_indices"] = torch.cat([inputs["image_indices"], moved], 1)
    options = {**options, cache_name: first[cache_name]}
    if "prefill_chunk_size" in options and cache_name == "past_key_values":
        with pytest.raises(ValueError, match="with a filled cache needs transformers 5.24 or newer"):
            _new(model, both, **options)
        return
    assert torch.equal(_new(model, both, **options), _plain(model, both))


@pytest.mark.parametrize(
    "options", [{}, {"prefill_chunk_size": 3, "cache_implementation": "dynamic"}, {"prompt_lookup_num_tokens": 3}, {"num_beams": 2}]
)
def test_pooled_frames(model: Any, processor: Any, world: Any, options: dict[str, Any]) -> None:
    """A batch of two videos and a picture; the first text is padded."""
    text = "<|im_start|>user\n{}What?<|im_end|>\n<|im_start|>assistant\n"
    media = {"images": [[], [str(world / "wide.png")]], "videos": [[str(world / "frames")]] * 2}
    pooled = {"frame_pooling": "progressive:full=1,half=9,factor=2", "return_tensors": "pt"}
    batch = dict(processor(text=[text.format("<video>"), text.format("<video><image>")], **media, **pooled))
    alone = [
        dict(processor(text=text.format(tags), images=images, videos=videos, **pooled))
        for tags, images, videos in zip(("<video>", "<video><image>"), *media.values())
    ]
    assert [(part["image_indices"][1] >= 0).sum(1).tolist() for part in alone] == [[1, 1, 4], [1, 1, 4, 4, 4, 4]]
    if "num_beams" in options:
        assert torch.equal(_new(model, batch, **options), _new(model, batch, **options, use_cache=False))
    elif options:  # prompt lookup takes one text, and 4.57 counts the padding of chunks wrong, pooled or not
        assert torch.equal(_new(model, alone[1], **options), _plain(model, alone[1]))
    else:
        found = _new(model, batch, **options)
        assert all(torch.equal(found[row : row + 1], _plain(model, part)) for row, part in enumerate(alone))


def test_pooled_frames_of_a_second_turn(model: Any, processor: Any, inputs: dict[str, torch.Tensor], world: Any, cache_name: str) -> None:
    """Their positions are moved behind the cached tokens, and what fills up short rows with them."""
    first = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
    text = "<|im_end|>\n<|im_start|>user\n<video>\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    new = processor(text=text, videos=[str(world / "frames")], frame_pooling="slow_fast:every=2,factor=2", return_tensors="pt")
    both = {**inputs, "input_ids": torch.cat([first.sequences, new["input_ids"]], 1)}
    both["attention_mask"] = torch.ones_like(both["input_ids"])
    moved = new["image_indices"] + torch.tensor([0, first.sequences.shape[1]])[:, None, None]
    both["images"] = torch.cat([inputs["images"], new["images"]])
    both["image_indices"] = torch.cat([inputs["image_indices"], moved], 1)
    wrong = {**both, "image_indices": both["image_indices"] + torch.tensor([0, 1])[:, None, None]}
    with pytest.raises(ValueError, match="on context tokens"):
        _new(model, wrong, **{cache_name: first[cache_name]})
    assert torch.equal(_new(model, both, **{cache_name: first[cache_name]}), _plain(model, both))


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_either_name_of_the_cache(model: Any, inputs: dict[str, torch.Tensor], cache_name: str, name: str) -> None:
    ids = inputs["input_ids"]
    media = {key: inputs[key] for key in ("images", "image_indices")}
    with torch.no_grad():
        whole = model(ids, **media).logits
        first = model(ids[:, :9], use_cache=True, **media)
        rest = model(ids[:, 9:], **media, **{name: first[cache_name]})
    # 1e-5: the cut changes the order of summation in attention.
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}], ids=["cache", "static-cache"])
def test_left_padding(model: Any, processor: Any, world: Any, options: dict[str, Any]) -> None:
    texts = ["<|im_start|>user\n<image>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n", "Hi <image>"]
    pictures = [[str(world / "wide.png")], [str(world / "frames" / "0.png")]]
    batch = _new(model, dict(processor(text=texts, images=pictures, return_tensors="pt")), **options)
    for row, (text, images) in enumerate(zip(texts, pictures)):
        assert torch.equal(batch[row : row + 1], _plain(model, dict(processor(text=text, images=images, return_tensors="pt"))))


def test_beams(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    beams = _new(model, inputs, num_beams=3)
    assert torch.equal(beams, _new(model, inputs, num_beams=3, use_cache=False))
    assert _new(model, inputs, num_beams=2, num_return_sequences=2).shape[0] == 2


def test_gradient_checkpointing(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    gradients = []
    for checkpointing in (False, True):
        trained = copy.deepcopy(model).train()
        if checkpointing:
            enable = getattr(trained, "activation_checkpointing_enable", trained.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        trained(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
        gradients.append(F.normalize(trained.model.vision_model.embeddings.class_embedding.grad, dim=-1))
    assert torch.equal(*gradients) and gradients[0].any()
