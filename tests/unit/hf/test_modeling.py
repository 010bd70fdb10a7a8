"""The transformers model: forward against a plain reference, splice, cache, batches, beams, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mindspeed_vita.checkpoint.hf.config import hf_config
from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.rules import convert_to_hf
from mindspeed_vita.hf import configuration_long_vita, modeling_long_vita
from mindspeed_vita.hf.configuration_long_vita import LongVITAConfig
from mindspeed_vita.hf.modeling_long_vita import LongVITAForCausalLM
from mindspeed_vita.hf.tile_positions import CACHE_NAME
from tests.tiny_checkpoint import TINY, random_weights

IDS = {"bos": 0, "eos": 383, "pad": 0, "image": 301, "video": 302, "patch": 303}
TOKENS = TINY.tokens_per_tile


def _model(**changes: Any) -> LongVITAForCausalLM:
    model = LongVITAForCausalLM(LongVITAConfig(**{**hf_config(TINY, token_ids=IDS, dtype="float32"), **changes})).eval()
    if not changes:
        model.load_state_dict(dict(convert_to_hf(random_weights(), family_rules("long_vita", TINY))))
    return model


@pytest.fixture(scope="module")
def model() -> LongVITAForCausalLM:
    return _model()


def _prompt(num_tiles: int, lead: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One row: `lead` text tokens, tiles each followed by one text token, two more."""
    ids, starts = list(range(10, 10 + lead)), []
    for tile in range(num_tiles):
        starts.append(len(ids))
        ids += [IDS["image"]] * TOKENS + [50 + tile]
    ids += [60, 61]
    positions = torch.tensor(starts)[:, None] + torch.arange(TOKENS)
    images = torch.randn(num_tiles, 3, 28, 28, generator=torch.Generator().manual_seed(num_tiles))
    return torch.tensor([ids]), images, torch.stack([torch.zeros_like(positions), positions])


def _reference_tower(state: dict[str, torch.Tensor], tiles: torch.Tensor) -> torch.Tensor:
    """The tower and projector written out once more, with loops and plain softmax."""
    vision, heads = "model.vision_model.", TINY.vision.num_heads
    first = {name.removeprefix(vision + "embeddings."): value for name, value in state.items() if vision + "embeddings." in name}
    patches = F.conv2d(tiles, first["patch_embedding.weight"], first["patch_embedding.bias"], stride=7)
    x = patches.flatten(2).transpose(1, 2)
    x = torch.cat([first["class_embedding"].expand(len(x), -1, -1), x], 1) + first["position_embedding"]
    for j in range(TINY.vision.num_layers):
        layer = {name.split(f"layers.{j}.")[1]: value for name, value in state.items() if f"encoder.layers.{j}." in name}
        y = F.layer_norm(x, (16,), layer["norm1.weight"], layer["norm1.bias"], 1e-6)
        q, k, v = (y @ layer["attn.qkv.weight"].T + layer["attn.qkv.bias"]).chunk(3, -1)
        outs = []
        for head in range(heads):
            cut = slice(head * 8, head * 8 + 8)
            scores = (q[..., cut] @ k[..., cut].transpose(1, 2) / 8**0.5).softmax(-1)
            outs.append(scores @ v[..., cut])
        x = x + layer["ls1"] * (torch.cat(outs, -1) @ layer["attn.proj.weight"].T + layer["attn.proj.bias"])
        y = F.layer_norm(x, (16,), layer["norm2.weight"], layer["norm2.bias"], 1e-6)
        y = F.gelu(y @ layer["mlp.fc1.weight"].T + layer["mlp.fc1.bias"])
        x = x + layer["ls2"] * (y @ layer["mlp.fc2.weight"].T + layer["mlp.fc2.bias"])
    grid = x[:, 1:].reshape(len(x), 4, 4, 16)
    merged = torch.stack([grid[:, r : r + 2, c : c + 2].reshape(len(x), -1) for r in (0, 2) for c in (0, 2)], 1)
    project = "model.vision_projection."
    norm = F.layer_norm(merged, (64,), state[project + "pre_proj_layernorm.weight"], state[project + "pre_proj_layernorm.bias"], 1e-5)
    return F.gelu(norm @ state[project + "mlp.0.weight"].T) @ state[project + "mlp.2.weight"].T


def test_tile_features_equal_a_written_out_reference(model: LongVITAForCausalLM) -> None:
    tiles = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        expected = _reference_tower(model.state_dict(), tiles)
        # 1e-5: measured 4e-7, order of summation.
        torch.testing.assert_close(model.get_image_features(tiles), expected, rtol=1e-5, atol=1e-5)


def test_logits_equal_a_plain_qwen2_fed_with_spliced_embeddings(model: LongVITAForCausalLM) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    ids, images, indices = _prompt(2)
    config = model.config.to_dict()
    names = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
    names += ["vocab_size", "rms_norm_eps"]
    plain = Qwen2ForCausalLM(Qwen2Config(**{name: config[name] for name in names}, rope_theta=5e5, tie_word_embeddings=False)).eval()
    state = model.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    with torch.no_grad():
        embeddings = plain.model.embed_tokens(ids)
        embeddings[0, indices[1].flatten()] = model.get_image_features(images).flatten(0, 1)
        expected = plain(inputs_embeds=embeddings).logits
        assert torch.equal(model(input_ids=ids, images=images, image_indices=indices).logits, expected)


def test_indices_left_out_are_read_off_the_context_tokens(model: LongVITAForCausalLM) -> None:
    ids, images, indices = _prompt(3)
    with torch.no_grad():
        assert torch.equal(model(ids, images=images).logits, model(ids, images=images, image_indices=indices).logits)
    with pytest.raises(ValueError, match="found 12 context tokens for 2 tiles of 4"):
        model(ids, images=images[:2])
    with pytest.raises(ValueError, match="found 2 tiles in `images` and 3 in `image_indices`"):
        model(ids, images=images[:2], image_indices=indices)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_prompt_in_pieces_gives_the_logits_of_the_whole(model: LongVITAForCausalLM, name: str) -> None:
    """A cut inside a tile: positions count from the start of the sequence, whatever is cached. Either name of the cache will do."""
    ids, images, indices = _prompt(2)
    with torch.no_grad():
        whole = model(ids, images=images, image_indices=indices).logits
        first = model(ids[:, :5], images=images, image_indices=indices, use_cache=True)
        rest = model(ids[:, 5:], images=images, image_indices=indices, **{name: first[CACHE_NAME]})
    # 1e-5: the cut changes the order of summation in attention.
    torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1), whole, rtol=1e-5, atol=1e-5)


def test_two_caches_at_once_are_refused(model: LongVITAForCausalLM) -> None:
    ids, images, indices = _prompt(1)
    caches = [model(ids, images=images, image_indices=indices, use_cache=True)[CACHE_NAME] for _ in range(2)]
    with pytest.raises(ValueError, match="two different caches in `cache` and `past_key_values`"):
        model(ids, cache=caches[0], past_key_values=caches[1])


@pytest.mark.parametrize("lead", [2, 20])
def test_tiles_that_would_miss_their_tokens_behind_a_cache_are_refused(model: LongVITAForCausalLM, lead: int) -> None:
    """A processor call on the new tokens alone counts positions from their start: no tile would be spliced, or at a wrong place."""
    old = _prompt(1)
    new, images, indices = _prompt(1, lead)
    count = old[0].shape[1]
    absolute = indices + torch.tensor([0, count])[:, None, None]
    with torch.no_grad():
        cache = model(old[0], images=old[1], image_indices=old[2], use_cache=True)[CACHE_NAME]
        mask = torch.ones(1, count + new.shape[1], dtype=torch.long)
        with pytest.raises(ValueError, match=f"{count} tokens are cached, .* add {count} to image_indices"):
            model.generate(new, images=images, image_indices=indices, attention_mask=mask, max_new_tokens=2, **{CACHE_NAME: cache})
        with pytest.raises(ValueError, match=f"add {count} to image_indices"):
            model(new, images=images, image_indices=indices, **{CACHE_NAME: cache})
        split = model(new, images=images, image_indices=absolute, **{CACHE_NAME: cache}).logits
        indices = torch.cat([old[2], absolute], 1)
        whole = model(torch.cat([old[0], new], 1), images=torch.cat([old[1], images]), image_indices=indices).logits
    torch.testing.assert_close(split, whole[:, count:], rtol=1e-5, atol=1e-5)


def test_new_ids_behind_a_cache_need_a_mask_of_the_whole(model: LongVITAForCausalLM) -> None:
    old, images, indices = _prompt(1)
    count = old.shape[1]
    new = old[:, :2]
    with torch.no_grad():
        cache = model(old, images=images, image_indices=indices, use_cache=True)[CACHE_NAME]
        for mask in (None, torch.ones_like(new)):
            with pytest.raises(ValueError, match=f"found 2 ids and {count} cached tokens; pass the ids of the whole sequence, or"):
                model.generate(new, attention_mask=mask, max_new_tokens=2, **{CACHE_NAME: cache})


def test_context_tokens_without_tiles_are_refused(model: LongVITAForCausalLM) -> None:
    with pytest.raises(ValueError, match="found 8 context tokens in the new ids, and 0 positions"):
        model.generate(_prompt(2)[0], max_new_tokens=2)


class _Reads(TorchDispatchMode):
    """Counts what would wait for a device: reading a value, and shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_tiles_are_spliced_once_and_cost_later_tokens_no_read_from_the_device(
    model: LongVITAForCausalLM, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    ids, images, indices = _prompt(2)
    splices: list[int] = []
    splice = modeling_long_vita.LongVitaModel._splice
    monkeypatch.setattr(
        modeling_long_vita.LongVitaModel, "_splice", lambda self, *args: (splices.append(1), splice(self, *args))[1]
    )

    def reads(num_tokens: int, **media: torch.Tensor) -> int:
        with _Reads() as counter:
            model.generate(
                ids if media else torch.full_like(ids, 10), max_new_tokens=num_tokens, eos_token_id=None, cache_implementation=kind, **media
            )
        return counter.count

    media = {"images": images, "image_indices": indices}
    with_tiles = reads(9, **media) - reads(3, **media)
    assert len(splices) == 2
    assert with_tiles == reads(9) - reads(3)


def test_generation_is_the_same_with_and_without_cache(model: LongVITAForCausalLM) -> None:
    ids, images, indices = _prompt(2)
    common = {"images": images, "image_indices": indices, "max_new_tokens": 8, "do_sample": False}
    dynamic = model.generate(input_ids=ids, **common)
    assert torch.equal(dynamic, model.generate(inputs=ids, use_cache=False, **common))
    assert torch.equal(dynamic, model.generate(ids, cache_implementation="static", **common))


def test_left_padded_batch_answers_like_single_prompts(model: LongVITAForCausalLM) -> None:
    long, short = _prompt(2), _prompt(1)
    pad = long[0].shape[1] - short[0].shape[1]
    ids = torch.cat([long[0], F.pad(short[0], (pad, 0))])
    mask = torch.ones_like(ids)
    mask[1, :pad] = 0
    moved = short[2] + torch.tensor([1, pad])[:, None, None]
    batch = model.generate(
        ids, attention_mask=mask, images=torch.cat([long[1], short[1]]), image_indices=torch.cat([long[2], moved], 1), max_new_tokens=6
    )
    for row, (one, images, indices) in enumerate((long, short)):
        single = model.generate(one, images=images, image_indices=indices, max_new_tokens=6)
        assert torch.equal(batch[row, ids.shape[1] :], single[0, one.shape[1] :])


def test_beams_and_several_answers_keep_tiles_with_their_row(model: LongVITAForCausalLM) -> None:
    first, second = _prompt(2), _prompt(2)
    other = second[1].flip(0)
    ids = torch.cat([first[0], second[0]])
    indices = torch.cat([first[2], second[2] + torch.tensor([1, 0])[:, None, None]], 1)
    both = model.generate(ids, images=torch.cat([first[1], other]), image_indices=indices, max_new_tokens=5, num_beams=3)
    single = model.generate(second[0], images=other, image_indices=second[2], max_new_tokens=5, num_beams=3)
    assert torch.equal(both[1], single[0])
    assert model.generate(ids, images=torch.cat([first[1], other]), max_new_tokens=2, num_beams=2, num_return_sequences=2).shape[0] == 4


def test_evaluation_harness_call_styles_are_accepted(model: LongVITAForCausalLM) -> None:
    ids, images, indices = _prompt(1)
    expected = model.generate(ids, images=images, image_indices=indices, max_new_tokens=3)
    greedy = {"top_p": 0, "top_k": 0, "temperature": 1.0, "repetition_penalty": 1.0, "do_sample": False}
    assert torch.equal(model.generate(inputs=ids, images=images, image_indices=indices, max_new_tokens=3, **greedy), expected)
    text = torch.tensor([[10, 11, 12]])
    plain = model.generate(text, max_new_tokens=3)
    empty = {"images": [], "image_indices": [], "audios": [], "videos": []}
    assert torch.equal(model.generate(text, padding_side="left", max_new_tokens=3, **empty), plain)
    with pytest.raises(ValueError, match="got videos; give media to the processor"):
        model.generate(text, videos=["clip.mp4"], max_new_tokens=3)


def test_loss_reaches_every_parameter() -> None:
    model = _model().train()
    ids, images, indices = _prompt(2)
    model(ids, images=images, image_indices=indices, labels=ids).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_gradient_checkpointing_changes_nothing() -> None:
    ids, images, indices = _prompt(2)
    gradients = []
    for checkpointing in (False, True):
        model = _model().train()
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        model(ids, images=images, image_indices=indices, labels=ids).loss.backward()
        gradients.append(model.model.vision_model.embeddings.class_embedding.grad)
    assert torch.equal(*gradients)


def test_many_tiles_are_encoded_in_parts(model: LongVITAForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = torch.randn(5, 3, 28, 28)
    with torch.no_grad():
        whole = model.get_image_features(tiles)
        monkeypatch.setattr(modeling_long_vita, "TILES_PER_CALL", 2)
        torch.testing.assert_close(model.get_image_features(tiles), whole, rtol=1e-6, atol=1e-6)


def test_tied_embeddings_share_the_table() -> None:
    model = _model(tie_word_embeddings=True)
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_fresh_model_has_neutral_layer_scale_and_random_positions() -> None:
    model = _model(initializer_range=0.05)
    assert model.model.vision_model.encoder.layers[0].ls1.eq(1).all()
    assert model.model.vision_model.embeddings.position_embedding.std() > 0.01


def test_config_writes_both_spellings_of_the_rotary_base(model: LongVITAForCausalLM) -> None:
    saved = model.config.to_dict()
    assert saved["rope_theta"] == saved["rope_parameters"]["rope_theta"] == 5e5
    released = LongVITAConfig(rope_theta=1e6, visual={"model_type": "intern_vit_6b", "hidden_size": 1024})
    assert released.to_dict()["rope_parameters"]["rope_theta"] == 1e6
    assert (released.projector_hidden_size, released.projector_norm_eps, released.tokens_per_tile) == (1024, 1e-5, 256)
    assert released.context_token_ids == (151667, 151670, 151673)


def test_names_of_the_released_and_the_new_style_exist() -> None:
    assert configuration_long_vita.LongVITAConfig is configuration_long_vita.LongVitaConfig is configuration_long_vita.Long_vitaConfig
    assert modeling_long_vita.Long_vitaModel is modeling_long_vita.LongVitaModel
    assert modeling_long_vita.Long_vitaForConditionalGeneration is modeling_long_vita.LongVitaForConditionalGeneration
    assert issubclass(LongVITAForCausalLM, modeling_long_vita.LongVitaForConditionalGeneration)


def test_towers_of_an_unknown_norm_are_refused() -> None:
    with pytest.raises(ValueError, match="norm_type is 'batch_norm'"):
        _ = LongVITAConfig(visual={"norm_type": "batch_norm"}).vision_config
