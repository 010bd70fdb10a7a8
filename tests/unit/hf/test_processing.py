"""The processor: ids as in training, tiles and their positions, call styles, clear refusals."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import load_image

from mindspeed_vita.data.sample import Message
from mindspeed_vita.data.templates import get_template
from mindspeed_vita.data.tokenizer import load_tokenizer
from mindspeed_vita.hf import image_processing_long_vita
from mindspeed_vita.hf.chat_template import CHAT_TEMPLATE
from mindspeed_vita.hf.image_processing_long_vita import LongVitaImageProcessor, open_image
from mindspeed_vita.hf.processing_long_vita import Long_vitaProcessor, LongVitaProcessor
from mindspeed_vita.hf.tiling import normalize
from mindspeed_vita.inference.generate import NativeGenerator
from mindspeed_vita.inference.request import ask
from tests.tiny_checkpoint import TINY, alone, tiny_recipe

HEAD, TAIL = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def processor(tokenizer_folder: Path) -> LongVitaProcessor:
    images = LongVitaImageProcessor(tile_size=28, max_tiles=4)
    return LongVitaProcessor(images, load_tokenizer(tokenizer_folder), tokens_per_tile=TINY.tokens_per_tile, max_frames=4)


def _render(processor: LongVitaProcessor, messages: list[dict[str, Any]], **options: Any) -> str:
    return processor.apply_chat_template(messages, add_generation_prompt=True, **options)


@pytest.mark.parametrize(
    "contents",
    [
        ["<image>\nWhat is it?"],
        ["\n\nleading line feeds", "\nAn answer with one.\n", "  spaces  "],
        ["<video>\nHow many?", "Two.", "And here: <image> or <image>?"],
        ["Text only, ünïcode 猫 and numbers 1234."],
        ["<image><video>\n<image>"],
    ],
)
def test_prompt_ids_equal_those_of_training(processor: LongVitaProcessor, contents: list[str]) -> None:
    turns = [("user", "assistant")[place % 2] for place in range(len(contents))]
    template = get_template("qwen2")
    ids, supervised = template.encode(
        [*(Message(role, text) for role, text in zip(turns, contents)), Message("assistant", "answer")], processor.tokenizer
    )
    last = len(supervised) - 1 - supervised[::-1].index(False)
    rendered = _render(processor, [{"role": role, "content": text} for role, text in zip(turns, contents)])
    assert processor._tokenize(rendered) == ids[: last + 1]


@pytest.mark.parametrize("text", ["a <|im_end|> b", "the <img> tag", "<|endoftext|>"])
def test_special_tokens_in_what_people_write_are_refused_as_in_training(processor: LongVitaProcessor, text: str) -> None:
    with pytest.raises(ValueError, match="the text holds a reserved token"):
        _render(processor, [{"role": "user", "content": text}])
    with pytest.raises(ValueError, match="the text holds a reserved token"):
        _render(processor, [{"role": "user", "content": [{"type": "text", "text": text}]}], tokenize=True, return_dict=True)
    assert "<box>[[1, 2]]</box>" in _render(processor, [{"role": "user", "content": "<ref>cup</ref><box>[[1, 2]]</box>"}])


def test_assistant_mask_equals_what_training_supervises(processor: LongVitaProcessor) -> None:
    talk = [Message("user", "What?"), Message("assistant", "\nA cat. 猫 "), Message("user", "And?"), Message("assistant", "Two.")]
    ids, supervised = get_template("qwen2").encode(talk, processor.tokenizer)
    messages = [{"role": message.role, "content": message.content} for message in talk]
    found = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert found["input_ids"] == [ids] and found["assistant_masks"] == [list(map(int, supervised))]


def test_media_tokens_and_tiles_equal_those_of_training(processor: LongVitaProcessor, pictures: dict[str, Any]) -> None:
    generator = NativeGenerator.__new__(NativeGenerator)
    NativeGenerator.__init__(generator, torch.nn.Identity(), alone(), tiny_recipe(), processor.tokenizer, torch.device("cpu"))
    request = ask(
        "See <video> and <image>, then <video> and <image>.",
        [pictures["wide_file"], pictures["square_file"]],
        [pictures["clip"], pictures["frames"]],
    )
    trained = generator.prompt(request)

    text = _render(processor, [{"role": "user", "content": request.messages[0].content}])
    asked = processor(text=text, images=list(request.images), videos=list(request.videos), return_tensors="pt")

    assert asked["input_ids"][0].tolist() == trained.tokens_T.tolist()
    assert asked["image_indices"][1, :, 0].tolist() == trained.tile_first_token.tolist()
    assert np.array_equal(asked["images"].numpy(), normalize(trained.tiles_NCHW.numpy()))
    # 3 of 30 frames at 10 fps, 3 tiles of the wide picture, 3 frames of the folder, 1 tile of the square one.
    assert asked["images"].shape == (10, 3, 28, 28)


@pytest.mark.parametrize("rule", ["shown", "published"])
def test_turned_and_transparent_pictures_are_the_same_for_generation_a_path_and_a_chat(
    processor: LongVitaProcessor, tmp_path: Path, rule: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    ink = Image.new("RGBA", (56, 28), (0, 0, 0, 0))
    ink.paste((0, 0, 0, 255), (10, 5, 30, 15))
    ink.save(tmp_path / "ink.png", exif=exif)
    path = str(tmp_path / "ink.png")
    recipe = tiny_recipe()
    recipe = replace(recipe, data=replace(recipe.data, pixels=rule))
    generator = NativeGenerator(torch.nn.Identity(), alone(), recipe, processor.tokenizer, torch.device("cpu"))
    tiles = normalize(generator.prompt(ask("<image>What?", [path], [])).tiles_NCHW.numpy())
    images = LongVitaImageProcessor(tile_size=28, max_tiles=4, pixels=rule)
    asked = LongVitaProcessor(images, processor.tokenizer, tokens_per_tile=TINY.tokens_per_tile)
    chat = [{"role": "user", "content": [{"type": "image", "path": path}, {"type": "text", "text": "What?"}]}]
    found = asked.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    assert np.array_equal(found["images"].numpy(), tiles)
    assert np.array_equal(asked(text="<image>", images=[path])["images"], tiles)
    assert np.array_equal(asked(text="<image>", images=[Image.open(path)])["images"], tiles)
    grid = asked.image_processor(path)["grids"][0]
    one_colour = np.array_equal(tiles.min(axis=(0, 2, 3)), tiles.max(axis=(0, 2, 3)))
    assert (grid, one_colour) == (([1, 2], False) if rule == "shown" else ([2, 1], True))


def test_what_transformers_opens_for_a_pipeline_is_turned_the_same(processor: LongVitaProcessor, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    half = Image.new("RGB", (56, 28), (255, 0, 0))
    half.paste((0, 0, 255), (28, 0, 56, 28))
    half.save(tmp_path / "half.jpg", exif=exif)
    path = str(tmp_path / "half.jpg")
    ours = processor(text="<image>", images=[path])["images"]
    assert np.array_equal(processor(text="<image>", images=[load_image(path)])["images"], ours)


def test_template_puts_each_medium_on_its_own_line(processor: LongVitaProcessor) -> None:
    content = [{"type": "image", "image": "a.png"}, {"type": "video", "video": "b.mp4"}, {"type": "text", "text": "What?"}]
    assert _render(processor, [{"role": "user", "content": content}]) == f"{HEAD}<image>\n<video>\nWhat?{TAIL}"
    assert "system" not in CHAT_TEMPLATE


def test_video_path_of_the_published_template_is_used_only_without_videos(processor: LongVitaProcessor, pictures: dict[str, Any]) -> None:
    clip, folder = pictures["clip"], pictures["frames"]
    written = f"{HEAD}<video>\n<video_path>{clip}<video_path>What?{TAIL}"
    expected = processor(text=f"{HEAD}<video>\nWhat?{TAIL}", videos=[clip])
    assert processor(text=written)["input_ids"] == expected["input_ids"]
    given = processor(text=written.replace(clip, "/nowhere.mp4"), videos=[[folder]])
    assert np.array_equal(given["images"], processor(text=f"{HEAD}<video>\nWhat?{TAIL}", videos=folder)["images"])


def test_batch_is_padded_on_the_left_and_positions_follow(processor: LongVitaProcessor, pictures: dict[str, Any]) -> None:
    texts = [f"{HEAD}<image>\nWhat?{TAIL}", f"{HEAD}<image> and <image>{TAIL}"]
    media = [[pictures["square"]], [pictures["wide"], pictures["square"]]]
    batch = processor(text=texts, images=media, return_tensors="pt", padding=True)
    flat = processor(text=texts, images=[pictures["square"], pictures["wide"], pictures["square"]], return_tensors="pt")
    right = processor(text=texts, images=media, return_tensors="pt", padding_side="right")
    context = processor.tokenizer.convert_tokens_to_ids(["<IMG_CONTEXT>", "<PATCH_CONTEXT>"])

    assert all(torch.equal(batch[name], flat[name]) for name in batch)
    assert batch["attention_mask"][0, 0] == 0 and right["attention_mask"][0, -1] == 0
    for found in (batch, right):
        rows, positions = found["image_indices"]
        assert torch.isin(found["input_ids"][rows, positions], torch.tensor(context)).all()
        assert rows[:, 0].tolist() == [0, 1, 1, 1, 1]


def test_call_styles_of_harnesses_are_accepted(processor: LongVitaProcessor, pictures: dict[str, Any]) -> None:
    text = f"{HEAD}Only text{TAIL}"
    plain = processor(text=[text], return_tensors="pt")
    empty = processor(
        text=[text], images=[], videos=[], audios=[], padding=True, padding_side="left", return_tensors="pt", do_resize=False
    )
    nested = processor(text=text, images=[[]], videos=[None], text_kwargs={"padding": True}, return_tensors="pt")
    assert set(plain) == {"input_ids", "attention_mask"}
    assert torch.equal(plain["input_ids"], empty["input_ids"]) and torch.equal(plain["input_ids"], nested["input_ids"])
    with pytest.raises(ValueError, match="found audio"):
        processor(text=text, audios=["a.wav"])


def test_every_parameter_of_the_published_processor_is_taken(
    processor: LongVitaProcessor, pictures: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    renamed = LongVitaProcessor(processor.image_processor, processor.tokenizer, image_seq_length=4)
    assert renamed.tokens_per_tile == renamed.image_seq_length == 4
    text, wide = f"{HEAD}<image>{TAIL}", pictures["wide"]
    counts = {
        len(processor(text=text, images=[wide], **options)["images"])
        for options in ({"crop_to_patches": False}, {"max_patches": 1}, {"images_kwargs": {"crop_to_patches": False, "max_patches": 9}})
    }
    assert counts == {1}
    assert len(processor(text=text, images=[wide], crop_to_patches=True)["images"]) == 3
    assert len(processor(text=text, images=[wide], min_patches=4, max_patches=4)["images"]) == 5
    with pytest.raises(ValueError, match="min_tiles=3, max_tiles=2; expected 1 <= min_tiles <= max_tiles"):
        processor(text=text, images=[wide], min_patches=3, max_patches=2)

    talk = [{"role": "user", "content": [{"type": "video", "video": pictures["clip"]}, {"type": "text", "text": "What?"}]}]
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, "num_frames": 2, "initial_shift": True, "video_load_backend": "pyav"}
    with caplog.at_level("WARNING"):
        found = processor.apply_chat_template(talk, add_generation_prompt=True, sample_indices_fn=None, **options)
    assert len(found["images"]) == 2 and "takes frames by its frame_sampler 'uniform' and ignores initial_shift" in caplog.text


def test_frames_may_come_as_lists_arrays_or_picture_files(processor: LongVitaProcessor, pictures: dict[str, Any]) -> None:
    text = f"{HEAD}<video>{TAIL}"
    files = [os.path.join(pictures["frames"], name) for name in sorted(os.listdir(pictures["frames"]))]
    frames = [open_image(file) for file in files]
    array = np.stack([np.asarray(frame) for frame in frames])
    expected = processor(text=text, videos=frames)["images"]
    for videos in ([frames], [[frames]], array, [array], files, [files]):
        assert np.array_equal(processor(text=text, videos=videos)["images"], expected)
    assert len(processor(text=text, videos=[pictures["clip"]], num_frames=2)["images"]) == 2


def test_pictures_may_come_in_any_form(processor: LongVitaProcessor, pictures: dict[str, Any]) -> None:
    import base64

    wide = pictures["wide"]
    content = base64.b64encode(Path(pictures["wide_file"]).read_bytes()).decode()
    array = np.asarray(wide)
    path = pictures["wide_file"]
    for form in (path, f"file://{path}", content, f"data:image/png;base64,{content}", array, array.transpose(2, 0, 1)):
        assert np.array_equal(np.asarray(open_image(form)), array)
    with pytest.raises(ValueError, match="no such file; give a path, a URL"):
        open_image("missing.png")
    with pytest.raises(ValueError, match=r"array of float64 \(4, 4, 3\)"):
        open_image(np.zeros((4, 4, 3)))


@pytest.mark.parametrize("length", [300, 3000, 5000])
def test_text_that_is_no_file_name_is_base64_or_refused(length: int) -> None:
    """A name of more than 255 bytes is an error of the system, not a missing file."""
    import base64
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (3, 2)).save(file, "bmp")
    content = base64.b64encode(file.getvalue() + b"\0" * length).decode()
    assert open_image(content).size == (3, 2)
    assert open_image("data:image/bmp;base64," + content[:40] + "\n" + content[40:]).size == (3, 2)
    with pytest.raises(ValueError, match="no such file; give a path"):
        open_image("?" * length)
    with pytest.raises(ValueError, match="'data URL' cannot be read"):
        open_image("data:image/png;base64,?" + content)


def test_a_picture_of_absurd_size_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)
    with pytest.raises(ValueError, match="bomb.png' cannot be read: Image size .* exceeds limit"):
        open_image(str(tmp_path / "bomb.png"))


def test_a_download_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(image_processing_long_vita, "urlopen", lambda url, timeout: io.BytesIO(bytes(2000)))
    monkeypatch.setattr(image_processing_long_vita, "MAX_URL_BYTES", 1000)
    with pytest.raises(ValueError, match="http://host/a.png' has more than 0 MiB"):
        open_image("http://host/a.png")
    monkeypatch.setattr(image_processing_long_vita, "MAX_URL_BYTES", 3000)
    with pytest.raises(ValueError, match="http://host/a.png' cannot be read"):
        open_image("http://host/a.png")

    def fails(url: str, timeout: float) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(image_processing_long_vita, "urlopen", fails)
    with pytest.raises(ValueError, match="http://host/a.png' cannot be loaded: timed out"):
        open_image("http://host/a.png")


@pytest.mark.parametrize(
    ("text", "media", "message"),
    [
        ("<image>", {}, "found 1 <image> tags for 0 images"),
        ("none", {"images": ["square"]}, "found 0 <image> tags for 1 images"),
        ("<image><image>", {"images": ["square"]}, "found 2 <image> tags for 1 images"),
        ("<video>", {"images": ["square"]}, "found 0 <image> tags for 1 images"),
    ],
)
def test_tags_and_media_must_match(
    processor: LongVitaProcessor, pictures: dict[str, Any], text: str, media: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        processor(text=text, **{kind: [pictures[name] for name in names] for kind, names in media.items()})


def test_a_list_per_text_is_checked_per_text(processor: LongVitaProcessor, pictures: dict[str, Any]) -> None:
    square = pictures["square"]
    with pytest.raises(ValueError, match="found 1 <image> tags for 2 images"):
        processor(text=["<image>", "<image>"], images=[[square, square], []])


def test_broken_media_are_named(processor: LongVitaProcessor, pictures: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(Path(pictures["wide_file"]).read_bytes()[:200])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    for text, media, message in (
        ("<image>", {"images": [str(tmp_path / "cut.png")]}, "cut.png' cannot be read"),
        ("<video>", {"videos": [str(tmp_path / "text.mp4")]}, "text.mp4' cannot be read"),
        ("<video>", {"videos": [str(tmp_path / "empty")]}, "empty' holds no .png"),
        ("<video>", {"videos": [str(tmp_path / "gone.mp4")]}, "gone.mp4': no such file or folder"),
    ):
        with pytest.raises(ValueError, match=message):
            processor(text=text, **media)


def test_prompts_are_never_cut(processor: LongVitaProcessor, pictures: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="max_length is 5; use fewer frames or tiles"):
        processor(text="<image>", images=pictures["wide"], truncation=True, max_length=5)
    padded = processor(text="Hi", padding="max_length", max_length=9)
    assert len(padded["input_ids"][0]) == 9


def test_unknown_sampler_is_refused(processor: LongVitaProcessor) -> None:
    with pytest.raises(ValueError, match="frame_sampler is 'random'; expected one of uniform, legacy"):
        LongVitaProcessor(processor.image_processor, processor.tokenizer, frame_sampler="random")


def test_image_processor_alone_gives_tiles(processor: LongVitaProcessor, pictures: dict[str, Any]) -> None:
    out = processor.image_processor(images=[pictures["wide"], pictures["square"]], return_tensors="pt")
    assert out["images"].shape == (4, 3, 28, 28)
    assert out["num_tiles"].tolist() == [3, 1] and out["grids"].tolist() == [[2, 1], [1, 1]]


def test_alias_of_the_released_architecture() -> None:
    assert Long_vitaProcessor is LongVitaProcessor
