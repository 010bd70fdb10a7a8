"""Export to the released Hugging Face layout: weights, configuration, tokenizer, processor and modelling files, verified after writing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

import torch

import mindspeed_vita.hf
from mindspeed_vita.checkpoint.hf.card import CARD, card_text, is_unchanged_card
from mindspeed_vita.checkpoint.hf.config import hf_config, model_config
from mindspeed_vita.checkpoint.hf.generation import generation_config, special_ids
from mindspeed_vita.checkpoint.hf.layout import Layout
from mindspeed_vita.checkpoint.hf.processor import PREPROCESSOR, PROCESSOR, write_processor
from mindspeed_vita.checkpoint.hf.safetensors_folder import write_shards
from mindspeed_vita.checkpoint.hf.tokenizer import TOKENIZER_FILES, write_json, write_tokenizer
from mindspeed_vita.checkpoint.hf.weights import native_tensors, open_weights
from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.rules import Rule, check_shapes, convert_to_hf, convert_to_native
from mindspeed_vita.config.recipe import Recipe
from mindspeed_vita.hf.chat_template import CHAT_TEMPLATES

VERIFICATION = "verification.json"
MAX_SHARD_BYTES = 5 * 10**9
CODE_FILES = (
    "chat_messages.py",
    "chat_template.py",
    "configuration_long_vita.py",
    "film.py",
    "frames.py",
    "generation_long_vita.py",
    "image_processing_long_vita.py",
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
    (*CODE_FILES, *TOKENIZER_FILES, PREPROCESSOR, PROCESSOR, VERIFICATION)
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
    """Largest difference between a weight read back and the native one in the stored type: 0.0."""
    sha256: dict[str, str]
    """Checksum per shard."""


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
) -> Verification:
    """Write a folder that transformers loads, in our layout with trust_remote_code.

    The folder appears whole or not at all; an earlier export at the same place is replaced.

    Args:
        weights: native names and full tensors.
        recipe: its model section gives the architecture, its data section the processor's settings.
        output: folder to make.
        tokenizer: fast tokenizer with the vision tokens.
        dtype: stored type; None keeps that of the embedding table.
        max_shard_bytes: size at which a new shard starts.
        layout: what to write; None: the released Long-VITA layout, with its code.
        card: licence of the weights, as hubs name it; with it, README.md is written.

    Raises:
        ValueError: the weights do not fit the recipe, the layout cannot hold them, `output` holds something else, or a weight read
            back differs.
        ExportFailed: the disk is full or not writable.
    """
    output, layout = Path(output).resolve(), layout or LONG_VITA
    check_output(output, layout)
    layout.check(recipe)
    text = _card(recipe, output.name, layout, card, dtype or weights["language.embedding.word_embeddings.weight"].dtype) if card else ""
    if len(tokenizer) > recipe.model.language.vocab_size:
        raise ValueError(f"the tokenizer has {len(tokenizer)} entries, the embedding table {recipe.model.language.vocab_size} rows")
    needed = {name: tuple(tensor.shape) for name, tensor in native_tensors(recipe.model).items()}
    check_shapes({name: tuple(tensor.shape) for name, tensor in weights.items()}, needed, side="native")
    dtype = dtype or weights["language.embedding.word_embeddings.weight"].dtype
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        rules = family_rules(layout.family, recipe.model)
        shards = write_shards(_stored(weights, rules, dtype), partial, max_shard_bytes=max_shard_bytes)
        layout.write_side_files(partial, recipe, tokenizer, dtype)
        if text:
            (partial / CARD).write_text(text, encoding="utf-8")
        verification = _verify(partial, layout, weights, rules, dtype, shards)
        write_json(partial / VERIFICATION, asdict(verification))
        _publish(partial, output)
    except OSError as error:
        raise ExportFailed(f"cannot write {output}: {error}; free space or choose another --output; nothing was exported") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
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


def write_side_files(folder: Path, recipe: Recipe, tokenizer: Any, dtype: torch.dtype) -> None:
    """Everything but the weights: configuration, tokenizer, processor, chat template and code."""
    template = recipe.data.template
    config = hf_config(recipe.model, token_ids=special_ids(tokenizer, recipe), dtype=str(dtype).removeprefix("torch."))
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation_config(tokenizer, recipe))
    write_tokenizer(tokenizer, folder, template)
    write_processor(folder, recipe.model, recipe.data)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATES[template], encoding="utf-8")
    code = Path(mindspeed_vita.hf.__path__[0])
    for name in CODE_FILES:
        shutil.copyfile(code / name, folder / name)


def _stored(weights: Mapping[str, torch.Tensor], rules: tuple[Rule, ...], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in convert_to_hf(weights, rules):
        yield name, tensor.to(dtype)


def _verify(
    folder: Path, layout: Layout, weights: Mapping[str, torch.Tensor], rules: tuple[Rule, ...], dtype: torch.dtype, shards: list[Path]
) -> Verification:
    """Compare the files with the shapes that config.json calls for, and every tensor, through the inverse rules, with the native one."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written = open_weights(folder, layout.family, layout.read_model(config))
    num_parameters = 0
    for name, tensor in convert_to_native(written, rules):
        expected = weights[name].to(dtype)
        if not torch.equal(tensor, expected):
            same = tensor.shape == expected.shape
            found = f"differs by {(tensor.double() - expected.double()).abs().max():.3g}" if same else f"has shape {tuple(tensor.shape)}"
            raise ValueError(f"{name} read back from {folder} {found}, expected {tuple(expected.shape)} unchanged; nothing was exported")
        num_parameters += tensor.numel()
    return Verification(
        layout=layout.family,
        dtype=str(dtype).removeprefix("torch."),
        num_tensors=len(written),
        num_parameters=num_parameters,
        max_diff=0.0,
        sha256={shard.name: _sha256(shard) for shard in shards},
    )


def _publish(partial: Path, output: Path) -> None:
    """Rename into place; an earlier export steps aside first, comes back if that fails, and is removed last."""
    for path in partial.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    old = output.with_name(f".{output.name}.old-{os.getpid()}")
    replaces = output.exists()
    if replaces:
        output.rename(old)
    try:
        partial.rename(output)
    except OSError:
        if replaces:
            old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def _card(recipe: Recipe, name: str, layout: Layout, licence: str, dtype: torch.dtype) -> str:
    stored, usage = str(dtype).removeprefix("torch."), layout.usage.replace("FOLDER", name)
    return card_text(name, recipe.model, recipe.data, layout=layout.title, dtype=stored, usage=usage, licence=licence)


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
