"""Export to the released Hugging Face layout: weights, configuration, tokenizer, processor and modelling files."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

import torch

import mindspeed_vita.hf
from mindspeed_vita.checkpoint.conversion import IN_MEMORY, Conversion
from mindspeed_vita.checkpoint.hf.card import CARD, card_text, is_unchanged_card
from mindspeed_vita.checkpoint.hf.config import hf_config, model_config
from mindspeed_vita.checkpoint.hf.generation import generation_config, special_ids
from mindspeed_vita.checkpoint.hf.layout import Layout
from mindspeed_vita.checkpoint.hf.processor import PREPROCESSOR, PROCESSOR, read_json, write_processor
from mindspeed_vita.checkpoint.hf.tokenizer import TOKENIZER_FILES, write_json, write_tokenizer
from mindspeed_vita.checkpoint.hf.weights import native_tensors, open_weights
from mindspeed_vita.checkpoint.lineage import LINEAGE, Lineage
from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.rules import check_shapes
from mindspeed_vita.checkpoint.mapping.streaming import hf_groups
from mindspeed_vita.config.recipe import Recipe
from mindspeed_vita.files.publish import Published, publish_folder, restore
from mindspeed_vita.files.safetensors_folder import plan_shards, write_index
from mindspeed_vita.files.shard_stream import ShardFile, write_stream
from mindspeed_vita.files.tensors import held
from mindspeed_vita.hf.chat_template import CHAT_TEMPLATES

VERIFICATION = "verification.json"
MAX_SHARD_BYTES = 5 * 10**9
CODE_FILES = (
    "chat_messages.py",
    "chat_template.py",
    "choices.py",
    "configuration_long_vita.py",
    "film.py",
    "frame_pooling.py",
    "frames.py",
    "generation_long_vita.py",
    "image_processing_long_vita.py",
    "media_lists.py",
    "modeling_long_vita.py",
    "pixels.py",
    "processing_long_vita.py",
    "tile_positions.py",
    "tiling.py",
    "token_layout.py",
    "video_file.py",
    "video_reading.py",
    "vision_long_vita.py",
)
"""The files of hf/ that travel with a checkpoint."""
FILES = frozenset(
    (*CODE_FILES, *TOKENIZER_FILES, PREPROCESSOR, PROCESSOR, VERIFICATION, LINEAGE)
    + ("config.json", "generation_config.json", "chat_template.jinja", "model.safetensors.index.json")
)
"""All that an export writes, except for its shards."""
SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")


class ExportFailed(OSError):
    """An export could not be written; what was at its place before is untouched."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was compared after writing; saved as verification.json."""

    layout: str
    """Weight family that was written."""
    dtype: str
    """Stored type."""
    num_tensors: int
    """Tensors in the shards."""
    num_parameters: int
    """Their elements."""
    max_diff: float
    """Largest difference between a stored weight and the native one in the stored type: 0.0. The rules only move elements, which
    hf_groups proves for each of them; the checksums are of the bytes as they were handed to the disk."""
    xxh128: dict[str, str]
    """Checksum per shard, of what was written."""
    identity: str = ""
    """Which weights it was made from, see Source.identity; empty where they were in memory."""


def export_hf(
    weights: Mapping[str, torch.Tensor],
    recipe: Recipe,
    output: str | Path,
    *,
    tokenizer: Any,
    dtype: Optional[torch.dtype] = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    layout: Optional[Layout] = None,
    card: str = "",
    frame_pooling: Optional[str] = None,
    conversion: Conversion = IN_MEMORY,
) -> Verification:
    """Write a folder that transformers loads, in our layout with trust_remote_code. One tensor group at a time is in memory.

    The folder appears whole or not at all; an earlier export at the same place is replaced, where the conversion allows that.

    Args:
        weights: native names and full tensors.
        recipe: its model section gives the architecture, its data section the processor's settings.
        output: folder to make.
        tokenizer: fast tokenizer with the vision tokens.
        dtype: stored type; None keeps that of the embedding table.
        max_shard_bytes: size at which a new shard starts.
        layout: what to write; None: the released Long-VITA layout, with its code.
        card: licence of the weights, as hubs name it; with it, README.md is written.
        frame_pooling: how the processor pools the frames of videos, see frame_pooling.py; None writes nothing about it.
        conversion: where the weights come from, for a later try to go on, and who is told how far it is.

    Raises:
        ValueError: the weights do not fit the recipe, the layout cannot hold them, frames cannot be pooled so, `output` holds
            something else or an export of other weights, or the disk is too small.
        ExportFailed: the disk is full or not writable.
        Published: the folder is whole and in its place, but something failed after that.
    """
    output, layout = Path(output).resolve(), layout or LONG_VITA
    restore(output, known_by=VERIFICATION)
    check_output(output, layout)
    _check_identity(output, conversion)
    layout.check(recipe)
    if len(tokenizer) > recipe.model.language.vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} entries, the embedding table {recipe.model.language.vocab_size} rows")
    native = held(weights)
    needed = {name: tuple(tensor.shape) for name, tensor in native_tensors(recipe.model).items()}
    check_shapes(native.shapes(), needed, side="native")
    dtype = dtype or native.specs()["language.embedding.word_embeddings.weight"].dtype
    groups = hf_groups(native, family_rules(layout.family, recipe.model), dtype)
    files = plan_shards({name: spec for group in groups for name, spec in group.specs.items()}, max_shard_bytes=max_shard_bytes)
    partial = conversion.folder(output.with_name(f".{output.name}.partial"))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with conversion.begun(partial, files) as journal:
            sums = write_stream(partial, files, groups, journal, conversion.started(files))
            conversion.before_publishing()
            write_index(partial, files)
            layout.write_side_files(partial, recipe, tokenizer, dtype, frame_pooling)
            if conversion.lineage is not None:
                write_json(partial / LINEAGE, conversion.lineage.encode())
            if card:
                (partial / CARD).write_text(_card(recipe, output.name, layout, card, dtype, conversion.lineage), encoding="utf-8")
            verification = _verify(partial, layout, files, dtype, sums, conversion.identity)
            write_json(partial / VERIFICATION, asdict(verification))
            publish_folder(partial, output, known_by=VERIFICATION, replace=True)
    except Published:
        raise
    except OSError as error:
        if conversion.origin is None:
            shutil.rmtree(partial, ignore_errors=True)
        raise ExportFailed(f"cannot write {output}: {error}; {conversion.advice(error)}; nothing was exported") from error
    return verification


def check_output(output: Path, layout: Layout) -> None:
    """Refuse to replace anything but an earlier export, and to lose what was added to one.

    Raises:
        ValueError: `output` is a file, or a folder with content that no export writes.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; choose another --output")
    held = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if held and VERIFICATION not in held:
        raise ValueError(f"{output} exists and is not an earlier export; choose another --output")
    added = [name for name in held if name not in layout.files and not SHARD.fullmatch(name)]
    if CARD in added and is_unchanged_card(output / CARD):
        added.remove(CARD)
    if added:
        raise ValueError(f"{output} holds files that no export writes: {', '.join(added[:8])}; move them, or choose another --output")


def write_side_files(
    folder: Path, recipe: Recipe, tokenizer: Any, dtype: torch.dtype, frame_pooling: Optional[str] = None
) -> None:
    """Everything but the weights: configuration, tokenizer, processor, chat template and code."""
    template = recipe.data.template
    config = hf_config(recipe.model, token_ids=special_ids(tokenizer, recipe), dtype=str(dtype).removeprefix("torch."))
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation_config(tokenizer, recipe))
    write_tokenizer(tokenizer, folder, template)
    write_processor(folder, recipe.model, recipe.data, frame_pooling)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATES[template], encoding="utf-8")
    code = Path(mindspeed_vita.hf.__path__[0])
    for name in CODE_FILES:
        shutil.copyfile(code / name, folder / name)


def _check_identity(output: Path, conversion: Conversion) -> None:
    """Refuse to replace an export of other weights unasked: nobody could make it again."""
    if conversion.replaces or not (output / VERIFICATION).is_file():
        return
    held = read_json(output / VERIFICATION).get("identity")
    if not held or held != conversion.identity:
        of = "other weights" if held else "weights that it does not name"
        raise ValueError(f"{output} holds an export of {of}; choose another --output, or add --replace to replace it")


def _verify(
    folder: Path, layout: Layout, files: Sequence[ShardFile], dtype: torch.dtype, sums: Mapping[str, str], identity: str
) -> Verification:
    """Compares names and shapes in the files with those that the written config.json calls for."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written = open_weights(folder, layout.family, layout.read_model(config)).specs()
    return Verification(
        layout=layout.family,
        dtype=str(dtype).removeprefix("torch."),
        num_tensors=len(written),
        num_parameters=sum(torch.Size(spec.shape).numel() for spec in written.values()),
        max_diff=0.0,
        xxh128={file.name: sums[file.name] for file in files},
        identity=identity,
    )


def _card(recipe: Recipe, name: str, layout: Layout, licence: str, dtype: torch.dtype, lineage: Optional[Lineage]) -> str:
    stored, usage = str(dtype).removeprefix("torch."), layout.usage.replace("FOLDER", name)
    return card_text(
        name, recipe.model, recipe.data, layout=layout.title, dtype=stored, usage=usage, licence=licence, lineage=lineage
    )


def _any_model(recipe: Recipe) -> None:
    """Our own code computes whatever a recipe can say."""


LONG_VITA = Layout(
    family="long_vita",
    files=FILES,
    title="the released Long-VITA layout, with modelling code (transformers 4.57 to 5)",
    usage="""
from transformers import pipeline

pipe = pipeline("image-text-to-text", model="FOLDER", trust_remote_code=True)
content = [{"type": "image", "image": "picture.jpg"}, {"type": "text", "text": "What is it?"}]
print(pipe(text=[{"role": "user", "content": content}], max_new_tokens=64, return_full_text=False))
""",
    check=_any_model,
    write_side_files=write_side_files,
    read_model=model_config,
)
"""--to hf."""
