"""A tiny checkpoint, made-up rows and tasks over them, for the real lmms-eval. Writes them: python -m tests.lmms_eval_plugin.world DIR"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

TASKS = {
    "vita_open": """
output_type: generate_until
doc_to_visual: !function utils.visuals
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {max_new_tokens: 6, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "vita_messages": """
output_type: generate_until
doc_to_visual: !function utils.visuals
doc_to_text: !function utils.text
doc_to_messages: !function utils.messages
doc_to_target: answer
generation_kwargs: {max_new_tokens: 6, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "vita_film": """
output_type: generate_until
doc_to_visual: !function utils.film
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {max_new_tokens: 6, until: ["zz"]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "vita_choice": """
output_type: multiple_choice
doc_to_visual: !function utils.visuals
doc_to_text: !function utils.text
doc_to_choice: choices
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
}
"""lmms-eval's tasks over the rows: a text with a picture, messages, a film, and options scored by likelihood."""
_HEAD = "task: {name}\ndataset_path: parquet\ndataset_kwargs: {{data_files: {{test: {file}}}}}\ntest_split: test\n"
_UTILS = '''
import os

def visuals(doc):
    return [doc["image"].convert("RGB")]

def film(doc):
    return [os.environ["VITA_FILM"]]

def text(doc, *settings, **more):
    return doc["question"]

def messages(doc, *settings, **more):
    content = [{"type": "text", "text": "Compare "}, {"type": "image", "url": visuals(doc)[0]}, {"type": "text", "text": doc["question"]}]
    return [{"role": "user", "content": content}]
'''


def picture(seed: int) -> bytes:
    """A PNG of noise."""
    content = io.BytesIO()
    draw = np.random.default_rng(seed)
    Image.fromarray(draw.integers(0, 256, (30 + 7 * seed, 40, 3), dtype=np.uint8)).save(content, "PNG")
    return content.getvalue()


def write_rows(folder: Path) -> None:
    """Tasks and rows, and a film of five frames, in a folder."""
    import datasets

    (folder / "tasks").mkdir(parents=True)
    rows = [
        {"image": {"bytes": picture(seed), "path": None}, "question": f"What is it? {seed}", "answer": "A cat",
         "choices": ["A cat", "Two", "No."], "label": seed % 3}
        for seed in range(5)
    ]  # fmt: skip
    features = datasets.Features({
        "image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string"),
        "choices": datasets.List(datasets.Value("string")), "label": datasets.Value("int64"),
    })  # fmt: skip
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(folder / "rows.parquet"))
    assert isinstance(parquet.read_table(folder / "rows.parquet"), pa.Table)
    for name, task in TASKS.items():
        (folder / "tasks" / f"{name}.yaml").write_text(_HEAD.format(name=name, file=folder / "rows.parquet") + task)
    (folder / "tasks" / "utils.py").write_text(_UTILS)
    (folder / "film").mkdir()
    for number in range(5):
        (folder / "film" / f"{number}.png").write_bytes(picture(number))


def write_checkpoints(folder: Path) -> None:
    """The same weights as a native run and as an export."""
    from mindspeed_vita.checkpoint.hf.export import export_hf
    from mindspeed_vita.checkpoint.native import checkpoint as native
    from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe

    tokenizer, weights = make_tokenizer(folder / "tokenizer"), random_weights(seed=6)
    recipe = tiny_recipe(tokenizer=str(folder / "tokenizer"))
    native.save_full_weights(folder / "run", weights, recipe)
    export_hf(weights, recipe, folder / "export", tokenizer=tokenizer)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_rows(target)
    write_checkpoints(target)
