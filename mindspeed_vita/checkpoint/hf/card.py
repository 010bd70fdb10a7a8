"""README.md of an exported folder, with the front matter that model hubs read: architecture, tokens, licence and usage."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

import mindspeed_vita
from mindspeed_vita.checkpoint.hf.weights import native_tensors
from mindspeed_vita.checkpoint.lineage import Lineage, tree
from mindspeed_vita.config import language_traits
from mindspeed_vita.config.recipe import DataConfig, ModelConfig

CARD = "README.md"
_MARK = re.compile(r"<!-- written by vita convert --card, ([0-9a-f]{64}) -->\n\Z")
_PARTS = {"vision": "vision tower", "projector": "projector", "language": "language model"}
_ATTENDED = "hidden width, layers, heads"


def card_text(
    name: str, model: ModelConfig, data: DataConfig, *, layout: str, dtype: str, usage: str, licence: str, lineage: Optional[Lineage] = None
) -> str:
    """Content of a card.

    Args:
        name: of the model.
        model: sizes.
        data: settings of the processor, and the chat template.
        layout: which layout the folder has, in words.
        dtype: stored type.
        usage: Python that loads the folder.
        licence: of the weights, as hubs name it, such as apache-2.0; other: not one of theirs.
        lineage: where the weights come from; None: not said.

    Raises:
        ValueError: the licence is not such a name.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise ValueError(f"--card {licence!r}: expected a licence as model hubs name it, such as apache-2.0, mit or other")
    front = {"license": licence, "library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": "[long-vita, multimodal]"}
    language, vision, rope = model.language, model.vision, model.language.rope_scaling
    scaled = "" if rope.kind == "none" else f", rotary positions scaled by {rope.kind} x {rope.factor:g}"
    architecture = {
        **{f"parameters, {part}": f"{count:,}" for part, count in parameter_counts(model).items()},
        f"language model: {_ATTENDED}, key/value heads": f"{language.hidden_size}, {language.num_layers}, {language.num_heads}, "
        f"{language.num_kv_heads} ({language_traits(language.family).hf_base})",
        "positions": f"{language.max_positions:,}{scaled}",
        f"vision tower: {_ATTENDED}": f"{vision.hidden_size}, {vision.num_layers}, {vision.num_heads} ({vision.tower})",
        "projector": f"{model.projector.kind}, {model.projector.hidden_size} wide",
        "stored type": dtype,
        "layout": layout,
    }
    tokens = {
        "vocabulary": f"{language.vocab_size:,} rows",
        "chat template": data.template,
        "tile": f"{vision.tile_size} x {vision.tile_size} pixels, {model.tokens_per_tile} tokens",
        "picture": f"{data.min_tiles} to {data.max_tiles} tiles ({data.tiling}), and a thumbnail where there is more than one",
        "video": f"up to {data.max_frames} frames, {data.max_fps:g} per second at most, one tile each",
    }
    body = "\n".join(
        (
            "---", *(f"{key}: {value}" for key, value in front.items()), "---", "",
            f"# {name}", "",
            "A vision-language model with the Long-VITA architecture: a vision tower, a pixel-shuffle projector and a decoder.", "",
            "## Architecture", "", *_table(architecture), "",
            "## Tokens", "", *_table(tokens), "",
            "## Usage", "", "```python", usage.strip(), "```", "",
            *(("## Lineage", "", "```", *tree(lineage), "```", "") if lineage else ()),
            f"`verification.json` has the checksum of each weight file. Exported by mindspeed_vita {mindspeed_vita.__version__}.", "",
        )
    )  # fmt: skip
    return f"{body}\n<!-- written by vita convert --card, {_digest(body)} -->\n"


def parameter_counts(model: ModelConfig) -> dict[str, int]:
    """Parameters of each part, and of all. A table that the output layer shares counts once."""
    counts = dict.fromkeys(_PARTS.values(), 0)
    for name, tensor in native_tensors(model).items():
        counts[_PARTS[name.split(".")[0]]] += math.prod(tensor.shape)
    return {**counts, "all": sum(counts.values())}


def is_unchanged_card(path: Path) -> bool:
    """Whether a file is a card as it was written, which a later export may replace."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = _MARK.search(text)
    return found is not None and found[1] == _digest(text[: found.start()].removesuffix("\n"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _table(rows: Mapping[str, str]) -> Sequence[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
