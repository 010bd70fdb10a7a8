"""One pack as an HTML page: its text with what is supervised in colour, its tiles in place, the bounds of its documents."""

from __future__ import annotations

import base64
import io
import re
from html import escape

import numpy as np
from PIL import Image

from mindspeed_vita.data.batch import IGNORE, PackedBatch
from mindspeed_vita.data.dataset import PackDataset
from mindspeed_vita.wording import counted

_STYLE = """
body { font: 14px/1.5 sans-serif; margin: 2em; max-width: 70em; }
.sample { border-left: 4px solid #999; padding: 0 0 0 1em; margin: 1.5em 0; white-space: pre-wrap; font-family: monospace; }
.document { border-top: 3px double #c00; color: #c00; }
.failed { border-color: #c00; }
h2 { font-size: 1em; white-space: normal; font-family: sans-serif; }
.learn { background: #cdeccd; }
img { width: 84px; height: 84px; margin: 1px; vertical-align: bottom; }
"""


def pack_page(dataset: PackDataset, number: int) -> str:
    """The page of a global pack number."""
    batch = dataset[number]
    epoch, pack = dataset.locate(number)
    used = int(batch.sample_cu[-1])
    length = len(batch.tokens_T)
    documents = set(batch.cu_seqlens.tolist())
    parts = [
        f"<!doctype html><meta charset=utf-8><title>pack {number}</title><style>{_STYLE}</style><h1>Pack {number}</h1>",
        f"<p>Pack {pack} of epoch {epoch}: {counted(len(batch.sample_ids), 'sample')}, {used:,} of {length:,} tokens, "
        f"{counted(len(batch.tile_first_token), 'tile')}, {counted(int((batch.labels_T != IGNORE).sum()), 'supervised token')}. "
        "A green span is learnt, with \u21b5 for a line feed, \u2192 for a tab and \u00b7 for a space "
        "at the start of a span or the end of a line; "
        "a double red line starts an attention document.</p>",
    ]
    for sample in range(len(batch.sample_ids)):
        start, stop = int(batch.sample_cu[sample]), int(batch.sample_cu[sample + 1])
        if start in documents:
            parts.append(f'<div class="document">document at token {start:,}</div>')
        parts.append(_sample(dataset, batch, sample, start, stop))
    if used < length:
        padding = counted(length - used, "token")
        parts.append(f'<div class="document">padding from token {used:,}: {padding}</div>')
    return "\n".join(parts) + "\n"


def _sample(dataset: PackDataset, batch: PackedBatch, sample: int, start: int, stop: int) -> str:
    sample_id = int(batch.sample_ids[sample])
    failed = bool(batch.failed[sample])
    source = dataset.source_names[int(batch.source_ids[sample])]
    title = f"{source}, sample {sample_id}, tokens {start:,} to {stop:,}, {dataset.where(sample_id)}"
    if failed:
        title += "; failed: " + "; ".join(failure.reason for failure in batch.failures if failure.sample_id == sample_id)
    body = _spans(dataset, batch, start, stop)
    return f'<div class="sample{" failed" if failed else ""}"><h2>{escape(title)}</h2>{body}</div>'


def _spans(dataset: PackDataset, batch: PackedBatch, start: int, stop: int) -> str:
    """Text and tiles from left to right. The label at t is token t + 1, so a token is learnt if the label before it is one."""
    tokens = batch.tokens_T[start:stop].tolist()
    learnt = [False, *(batch.labels_T[start : stop - 1] != IGNORE).tolist()]
    contexts = batch.context_ids
    tiles = {int(token): place for place, token in enumerate(batch.tile_first_token.tolist())}
    parts: list[str] = []
    run: list[int] = []

    def flush(is_learnt: bool) -> None:
        if run:
            text = dataset.tokenizer.decode(run)
            parts.append(f'<span class="learn">{_visible(text)}</span>' if is_learnt else escape(text))
            run.clear()

    for place, token in enumerate(tokens):
        if place and learnt[place] != learnt[place - 1]:
            flush(learnt[place - 1])
        if token not in contexts:
            run.append(token)
        elif start + place in tiles:
            flush(learnt[place])
            parts.append(_image(batch.tiles_NCHW[tiles[start + place]].numpy()))
    flush(bool(learnt) and learnt[-1])
    return "".join(parts)


def _visible(text: str) -> str:
    """Learnt text with a sign for each line feed, tab, and space that starts the text or ends a line: they are learnt too."""
    signs = re.sub(r"^ +| +(?=\n|$)", lambda found: "\u00b7" * len(found[0]), text).replace("\t", "\u2192\t")
    return escape(signs).replace("\r", "\u240d").replace("\n", "\u21b5\n")


def _image(tile_CHW: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(tile_CHW.transpose(1, 2, 0)).save(file, "PNG")
    return f'<img src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}" alt="tile">'
