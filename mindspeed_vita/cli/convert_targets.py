"""What `vita convert` writes: a function for each --to."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from mindspeed_vita.choices import Precision
from mindspeed_vita.wording import counted

if TYPE_CHECKING:
    import torch

    from mindspeed_vita.checkpoint.conversion import Conversion
    from mindspeed_vita.checkpoint.hf.layout import Layout
    from mindspeed_vita.checkpoint.source import Source
    from mindspeed_vita.checkpoint.training import Training


@dataclass(frozen=True, kw_only=True)
class Work:
    """One conversion."""

    opened: Source
    """Where the weights come from."""
    output: Path
    """Folder to write."""
    arguments: argparse.Namespace
    """Of the command."""
    dtype: Optional[torch.dtype]
    """Type to store; None keeps each tensor's."""
    shard_bytes: int
    """Size at which a new file starts."""
    conversion: Conversion
    """Who is told how far it is, and what a later try goes on from."""
    training: Optional[Training]
    """The optimizer that is moved along; None: weights only."""


def _write_hf(work: Work) -> str:
    from mindspeed_vita.checkpoint.hf.export import export_hf
    from mindspeed_vita.checkpoint.hf.processor import read_frame_pooling
    from mindspeed_vita.data.templates import get_template
    from mindspeed_vita.data.tokenizer import load_tokenizer

    opened, arguments = work.opened, work.arguments
    recipe, pooling = opened.recipe, arguments.frame_pooling
    if pooling is None and arguments.to == "hf":
        pooling = read_frame_pooling(opened.files[0].parent if opened.adapter else Path(arguments.source))  # merged: the base's
    done = export_hf(
        opened.weights,
        recipe,
        work.output,
        tokenizer=load_tokenizer(recipe.data.tokenizer, get_template(recipe.data.template)),
        dtype=work.dtype,
        max_shard_bytes=work.shard_bytes,
        layout=layout_of(arguments.to),
        card=arguments.card,
        frame_pooling=pooling,
        conversion=work.conversion,
    )
    return f"{work.output}: {counted(done.num_tensors, 'tensor')}, {counted(done.num_parameters, 'parameter')}, {done.dtype}"


def _write_native(work: Work) -> str:
    from dataclasses import replace

    import torch

    from mindspeed_vita.checkpoint.native import checkpoint as native
    from mindspeed_vita.files.tensors import cast

    opened, training = work.opened, work.training
    tensors = cast(opened.weights, work.dtype)
    stored = tensors.specs()["language.embedding.word_embeddings.weight"].dtype
    precision: Precision = "fp32" if stored is torch.float32 else "bf16"
    recipe = replace(opened.recipe, train=replace(opened.recipe.train, precision=precision))
    optimizer, state = (training.optimizer, training.state) if training else (None, None)
    folder = native.save_full_weights(
        work.output,
        tensors,
        recipe,
        max_file_bytes=work.shard_bytes,
        optimizer=optimizer,
        state=state,
        conversion=work.conversion,
    )
    return f"{folder}: {counted(len(tensors), 'tensor')}{_use(work)}"


def _write_megatron(work: Work) -> str:
    from mindspeed_vita.checkpoint.megatron.write import write_megatron

    tp, pp = work.arguments.tp or 1, work.arguments.pp or 1
    files = write_megatron(
        work.opened.weights,
        work.opened.recipe,
        work.output,
        tp=tp,
        pp=pp,
        fused_norms=work.arguments.to == "megatron",
        dtype=work.dtype,
        training=work.training,
        conversion=work.conversion,
    )
    return f"{work.output}: {len(work.opened.weights)} tensors in {files} files for tp={tp} pp={pp}{_use(work)}"


def _use(work: Work) -> str:
    if work.training is None:
        return f"; start from it with checkpoint.init_from={work.output}"
    state = work.training.state
    return f", the optimizer after step {state.step} and {state.packs} packs; continue from it with checkpoint.directory={work.output}"


def layout_of(to: str) -> Layout:
    """The layout of an export: hf or internvl."""
    from mindspeed_vita.checkpoint.hf.export import LONG_VITA
    from mindspeed_vita.checkpoint.hf.internvl_files import INTERNVL_LAYOUT

    return {"hf": LONG_VITA, "internvl": INTERNVL_LAYOUT}[to]


WRITERS: dict[str, Callable[[Work], str]] = {
    "hf": _write_hf,
    "internvl": _write_hf,
    "native": _write_native,
    "mindspeed-llm": _write_megatron,
    "megatron": _write_megatron,
}
"""By --to: writes the output, and says in a line what was written."""
