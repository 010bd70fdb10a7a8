"""Asks the exported model about held-out pictures: is it right, does the answer follow a swapped picture, what does it say to a blank one.

The export is loaded as any user would load it, by transformers' pipeline with remote code. A few questions go through the pipeline
one by one and are printed; the bulk goes through the pipeline's own processor and model in batches, which gives the same ids.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))
from project_environment import packages_needed

with packages_needed():
    import torch
    from PIL import Image
    from subjects import KINDS
    from transformers import pipeline
    from transformers.utils import logging as transformers_logging

BATCH = 25
MAX_NEW_TOKENS = 24
"""Longer than any answer of the data set; a sentence has up to 15 tokens."""
SHOWN = 6
"""Questions asked through the pipeline itself."""
BLANK = (127, 127, 127)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one picture or clip."""

    text: str
    media: Any
    """A PIL picture, or the path of a clip."""
    video: bool = False

    def messages(self) -> list[dict[str, Any]]:
        """As a chat for transformers."""
        part = {"type": "video", "video": self.media} if self.video else {"type": "image", "image": self.media}
        return [{"role": "user", "content": [part, {"type": "text", "text": self.text}]}]


def load_pipeline(folder: Path) -> Any:
    """The exported checkpoint in transformers' image-text-to-text pipeline, on the CPU."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    return pipeline("image-text-to-text", model=str(folder), trust_remote_code=True, device="cpu", dtype=torch.float32)


def answer_all(pipe: Any, questions: Sequence[Question]) -> list[str]:
    """Greedy answers, batched by kind of medium; same order as the questions."""
    answers = [""] * len(questions)
    for video in (False, True):
        places = [place for place, question in enumerate(questions) if question.video == video]
        for start in range(0, len(places), BATCH):
            chosen = places[start : start + BATCH]
            for place, answer in zip(chosen, _answer_batch(pipe, [questions[place] for place in chosen], video)):
                answers[place] = answer
            if start // BATCH % 4 == 3:
                print(f"{start + len(chosen)} of {len(places)} questions answered", file=sys.stderr, flush=True)
    return answers


def _answer_batch(pipe: Any, questions: list[Question], video: bool) -> list[str]:
    processor = pipe.processor
    texts = [processor.apply_chat_template(question.messages(), tokenize=False, add_generation_prompt=True) for question in questions]
    media = {"videos" if video else "images": [[question.media] for question in questions]}
    inputs = processor(text=texts, padding=True, return_tensors="pt", **media)
    with torch.inference_mode():
        ids = pipe.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    new = ids[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


def ask_pipeline(pipe: Any, question: Question) -> str:
    """One answer through the pipeline itself."""
    outputs = pipe(text=question.messages(), generate_kwargs={"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}, return_full_text=False)
    return str(outputs[0]["generated_text"]).strip()


def score(
    items: Sequence[dict[str, str]], right: Sequence[str], swapped: Sequence[str], blank: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Shares per kind, and over all kinds ("all").

    Args:
        items: rows of eval.json.
        right: answers to the item's own picture.
        swapped: answers to the same question about the swapped picture, whose right answer differs.
        blank: answers to the same question about a grey picture of the same size.

    Returns:
        {kind: {"questions", "right", "follows", "blank"}}: `blank` is how often the answer to the blank picture happens to be the
        right one for the item's own picture.
    """
    table = {}
    for kind in (*KINDS, "all"):
        rows = [place for place, item in enumerate(items) if kind in (item["kind"], "all")]
        count = max(len(rows), 1)
        table[kind] = {
            "questions": len(rows),
            "right": sum(right[row] == items[row]["answer"] for row in rows) / count,
            "follows": sum(swapped[row] == items[row]["swapped_answer"] for row in rows) / count,
            "blank": sum(blank[row] == items[row]["answer"] for row in rows) / count,
        }
    return table


def open_picture(path: Path) -> Image.Image:
    """An RGB picture, read to the end."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def show(pipe: Any, items: Sequence[dict[str, str]], media: Path, batched: Sequence[str]) -> list[dict[str, Any]]:
    """Asks a few questions through the pipeline, spread over the data set, and notes whether the batch said the same."""
    shown = []
    for place in range(0, len(items), -(-len(items) // SHOWN)):
        item = items[(place + place // 7) % len(items)]
        answer = ask_pipeline(pipe, Question(text=item["question"], media=open_picture(media / item["image"])))
        same = answer == batched[items.index(item)]
        shown.append({**{key: item[key] for key in ("image", "question")}, "answer": answer, "wanted": item["answer"], "same": same})
    return shown


def evaluate(export: Path, data: Path) -> dict[str, Any]:
    """Runs the whole evaluation.

    Args:
        export: folder that `vita convert --to hf` wrote.
        data: folder that make_data.py wrote.

    Returns:
        {"table": see score, "clips": {"questions", "right"}, "shown": answers of the pipeline, "answered": share of answers not empty}.
    """
    print(f"loading {export} into transformers' pipeline", file=sys.stderr, flush=True)
    pipe, media = load_pipeline(export), data / "media"
    content = json.loads((data / "eval.json").read_text(encoding="utf-8"))
    items, clips = content["pictures"], content["clips"]
    pictures = {name: open_picture(media / name) for item in items for name in (item["image"], item["swapped_image"])}

    def about(key: str) -> list[str]:
        return answer_all(pipe, [Question(text=item["question"], media=pictures[item[key]]) for item in items])

    right, swapped = about("image"), about("swapped_image")
    blanks = [Question(text=item["question"], media=Image.new("RGB", pictures[item["image"]].size, BLANK)) for item in items]
    blank = answer_all(pipe, blanks)
    on_clips = answer_all(pipe, [Question(text=item["question"], media=str(media / item["video"]), video=True) for item in clips])
    hits = sum(answer == item["answer"] for answer, item in zip(on_clips, clips))
    everything = [*right, *swapped, *blank, *on_clips]
    return {
        "table": score(items, right, swapped, blank),
        "clips": {"questions": len(clips), "right": hits / max(len(clips), 1)},
        "shown": show(pipe, items, media, right),
        "answered": sum(bool(answer) for answer in everything) / len(everything),
        "misses": [{**item, "said": answer} for item, answer in zip(items, right) if answer != item["answer"]],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--export", type=Path, required=True, help="exported checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="folder of make_data.py")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    result = evaluate(args.export, args.data)
    args.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print("a few answers of the exported model, through transformers' pipeline:")
    for row in result["shown"]:
        print(f"  {row['image']:34} {row['question']:46} {row['answer']}")


if __name__ == "__main__":
    main()
