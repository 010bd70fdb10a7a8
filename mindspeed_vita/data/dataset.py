"""Packs by number: which samples, from the plan; their tokens, labels and tiles, assembled when the pack is asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_vita.config.recipe import DataConfig
from mindspeed_vita.data.assemble import EncodedSample, Medium, assemble_pack, encode_sample
from mindspeed_vita.data.at_work import note
from mindspeed_vita.data.batch import PackedBatch
from mindspeed_vita.data.budget import FailureBudget
from mindspeed_vita.data.indexing import OnProgress
from mindspeed_vita.data.media.decoder import get_decoder
from mindspeed_vita.data.media.limits import MediaLimits, media_limits
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.data.media.readers import check_reader
from mindspeed_vita.data.open_files import OpenFiles
from mindspeed_vita.data.pack_share import PackShare, PackStream
from mindspeed_vita.data.plan_file import EpochPlan
from mindspeed_vita.data.prepare import (
    Prepared,
    check_media_root,
    decode_settings,
    index_folder,
    plan_epoch,
    plan_on_disk,
    prepare,
    skip_summary,
)
from mindspeed_vita.data.rows import RowReader
from mindspeed_vita.data.sample import Sample
from mindspeed_vita.data.templates import ChatTemplate, get_template
from mindspeed_vita.data.tokenizer import load_tokenizer, vision_token_ids
from mindspeed_vita.files.writing import written_below
from mindspeed_vita.hf.token_layout import VisionTokenIds
from mindspeed_vita.wording import counted

_OPEN_PLANS = 3
"""Epochs whose plans stay open."""


@dataclass(frozen=True, kw_only=True)
class TextEncoding:
    """What turns messages into tokens."""

    tokenizer: Any
    template: ChatTemplate
    ids: VisionTokenIds
    pad_id: int


class PackDataset:
    """All packs of all epochs, numbered from 0. Which samples a number holds follows from the fingerprint alone."""

    def __init__(
        self,
        *,
        settings: DataConfig,
        text: TextEncoding,
        limits: MediaLimits,
        prepared: Prepared,
        pack_counts: Sequence[int] = (),
        normalization: str = "imagenet",
    ) -> None:
        self.settings = settings
        self.tokenizer = text.tokenizer
        self.index = prepared.index
        self.source_names = prepared.sources
        """Entries of the mixture; PackedBatch.source_ids points here."""
        self.skipped = prepared.skipped
        """Samples left out, each with its reason."""
        self.fingerprint = prepared.fingerprint
        """sha256 over index, tokenizer, template and settings: equal fingerprints give equal packs."""
        self.share: PackShare | None = None
        """How ranks of one host hand each other the tokens of packs; None: this process reads every pack that it needs."""
        self._text = text
        self._limits = limits
        self._prepared = prepared
        self._decoding = decode_settings(settings, normalization)
        files = OpenFiles()
        self._files = tuple(RowReader(file["path"], file["rows_path"], file["is_array"], files) for file in prepared.files)
        self._roots = tuple(file["root"] for file in prepared.files)
        self._plans: dict[int, EpochPlan] = {}
        self._ends = list(accumulate(pack_counts))

    @property
    def num_samples(self) -> int:
        """Samples drawn per epoch; a ratio above 1 counts repeats."""
        return len(self.index.draws)

    @property
    def folder(self) -> Path:
        """Where columns and plans lie."""
        return self._prepared.folder

    def num_packs(self, epoch: int) -> int:
        """Packs of one epoch; the count can differ by a few between epochs."""
        while len(self._ends) <= epoch:
            self._ends.append((self._ends or [0])[-1] + len(self.plan(len(self._ends)).packs))
        return self._ends[epoch] - (self._ends[epoch - 1] if epoch else 0)

    def locate(self, number: int) -> tuple[int, int]:
        """(epoch, pack in that epoch) of a global pack number."""
        while not self._ends or number >= self._ends[-1]:
            self.num_packs(len(self._ends))
        epoch = bisect_right(self._ends, number)
        return epoch, number - (self._ends[epoch - 1] if epoch else 0)

    def samples_of(self, number: int) -> np.ndarray:
        """Sample ids of a global pack number, in pack order."""
        epoch, pack = self.locate(number)
        return self.index.draws[self.plan(epoch).packs.pack(pack)]

    def cost_of(self, number: int) -> tuple[int, int, float]:
        """(tokens, tiles, sum of squared sample lengths) of a global pack number."""
        epoch, pack = self.locate(number)
        plan = self.plan(epoch)
        return int(plan.tokens[pack]), int(plan.tiles[pack]), float(plan.squares[pack])

    def plan(self, epoch: int) -> EpochPlan:
        """The packs of an epoch."""
        if epoch not in self._plans:
            if len(self._plans) >= _OPEN_PLANS:
                self._plans.pop(min(self._plans))
            self._plans[epoch] = plan_epoch(self._prepared, self.settings, epoch)
        return self._plans[epoch]

    def __getitem__(self, number: int) -> PackedBatch:
        """The whole pack of that global number, all tiles decoded here."""
        return self.pack(number)

    def pack(
        self,
        number: int,
        *,
        group_rank: int = 0,
        group_size: int = 1,
        ring_size: int = 1,
        node_size: int = 0,
        decode: bool = True,
        shared: PackStream | None = None,
    ) -> PackedBatch:
        """One pack with the tiles of one rank.

        Args:
            number: global pack number, from 0 over all epochs.
            group_rank: this rank in the tensor x context parallel group that shares the tiles.
            group_size: size of that group.
            ring_size: size of the context-parallel ring (ParallelLayout.ring_size).
            node_size: its ranks that share a node (ParallelLayout.node_size).
            decode: False leaves every tile out.
            shared: gives the pack's tokens where another process of this host reads them; None: this process does.

        Raises:
            ValueError: a row is no longer the one that was indexed; names file and line.
        """
        return assemble_pack(
            self._encoded(number) if shared is None else shared.get(number, lambda: self._encoded(number)),
            seq_length=self.settings.seq_length,
            resets=self.settings.resets,
            pad_id=self._text.pad_id,
            context_ids=self._text.ids.placeholders,
            tile_size=self._limits.tile_size,
            group_rank=group_rank,
            group_size=group_size,
            ring_size=ring_size,
            node_size=node_size,
            decode=decode,
            decoding=self._decoding,
            loss_weighting=self.settings.loss_weighting,
        )

    def _encoded(self, number: int) -> list[EncodedSample]:
        return [self.encode(int(sample_id)) for sample_id in self.samples_of(number)]

    def describe(self) -> str:
        """One line on what was indexed and what was skipped, with the commonest reasons."""
        prepared = self._prepared
        sources = ", ".join(f"{name} {count:,}" for name, count in zip(prepared.sources, prepared.samples))
        packs = f"{counted(self.num_packs(0), 'pack')} of {self.settings.seq_length:,}"
        sizes = f"{counted(prepared.num_tokens, 'token')}, {counted(prepared.num_tiles, 'tile')}"
        line = f"{counted(self.num_samples, 'sample')} ({sources}), {sizes}, {packs}"
        return line if not self.skipped else f"{line}; skipped {skip_summary(self.skipped)}"

    def failure_budget(self) -> FailureBudget:
        """How many samples of each source may fail."""
        return FailureBudget(self.settings.failure_budget, self.source_names, self.index.source_ids)

    def where(self, sample_id: int) -> str:
        """File and line of a sample."""
        return self._files[self.index.file_ids[sample_id]].where(int(self.index.places[sample_id]))

    def encode(self, sample_id: int) -> EncodedSample:
        """Tokens and media of one sample.

        Raises:
            ValueError: its row is no longer the one that was indexed; names file and line.
        """
        index = self.index
        file_id, place = int(index.file_ids[sample_id]), int(index.places[sample_id])
        file = self._files[file_id]
        note(file.where(place))
        row = file.sample(int(index.offsets[sample_id]), int(index.sizes[sample_id]), place, index.digest(sample_id))
        sample, gone = self._located(row, self._roots[file_id])
        sample = sample.first_turns(int(index.num_messages[sample_id]))
        pictures = [Medium(path, grid, None, ()) for path, grid in zip(sample.images, index.grids(sample_id), strict=True)]
        videos = [
            Medium(path, None, header, tuple(self._limits.frames(header, limit)))
            for path, (header, limit) in zip(sample.videos, index.videos(sample_id), strict=True)
        ]
        source_id = int(index.source_ids[sample_id])
        encoded = encode_sample(
            sample,
            [*pictures, *videos],
            tokenizer=self._text.tokenizer,
            template=self._text.template,
            ids=self._text.ids,
            limits=self._limits,
            sample_id=sample_id,
            source_id=source_id,
            source=self.source_names[source_id],
            root=self._roots[file_id],
        )
        num_tokens = int(index.num_tokens[sample_id])
        if gone:
            return encoded.masked(num_tokens, self._text.pad_id)
        if len(encoded.tokens_T) != num_tokens:
            raise self._disagrees(sample_id, len(encoded.tokens_T))
        return encoded

    def _disagrees(self, sample_id: int, found: int) -> ValueError:
        """What to raise where a sample has other tokens than the index says."""
        index = self.index
        remove = f"remove {index_folder(self.settings)} and start again"
        earlier = "an earlier version indexed it that left keys such as 'system' out"
        if index.digest(sample_id) is None:
            changed = self._files[index.file_ids[sample_id]].changed(int(index.places[sample_id]))
            return ValueError(f"{changed}. If the file did not change, {earlier}: {remove}")
        return ValueError(
            f"{self.where(sample_id)}: gives {found:,} tokens, had {int(index.num_tokens[sample_id]):,} when it was indexed: a picture "
            f"that boxes are measured by changed, or {earlier}; {remove}"
        )

    def _located(self, row: Sample, root: str) -> tuple[Sample, bool]:
        """The sample with its boxes as text; True: a picture that they are measured by is gone, and they are all zero.

        Decoding that picture fails too, which is where the failure is counted.
        """
        if not row.boxes:
            return row, False
        try:
            return row.located([get_decoder(self._decoding).probe_picture(path, root) for path in row.images]), False
        except (MediaError, ValueError):
            return replace(row, boxes=tuple(box._replace(corners=(0.0,) * len(box.corners)) for box in row.boxes)).located(
                [(1, 1)] * len(row.images)
            ), True


def build_data(
    data: DataConfig,
    *,
    tokens_per_tile: int,
    tile_size: int,
    vocab_size: int,
    tp_size: int = 1,
    cp_size: int = 1,
    num_packs: int = 0,
    normalization: str = "imagenet",
    again: bool = False,
    progress: OnProgress | None = None,
) -> PackDataset:
    """Opens the packs of a mixture; what is missing of index, columns and plans is made and kept on disk first.

    Args:
        data: the recipe's section.
        tokens_per_tile: language-model tokens of one tile.
        tile_size: side of a tile, in pixels.
        vocab_size: rows of the embedding table.
        tp_size: tensor-parallel size.
        cp_size: context-parallel size.
        num_packs: packs that will be asked for, so that the plans of all their epochs are made now.
        normalization: the tower's (VisionConfig).
        again: index files anew of which samples were skipped.
        progress: called while files are indexed.

    Raises:
        ValueError: a setting, the tokenizer, the mixture or a row is wrong, a source has no usable sample, or the folder of the index
            cannot be written.
    """
    if data.seq_length < 1 or data.seq_length % (2 * cp_size * tp_size):
        raise ValueError(f"data.seq_length={data.seq_length} is not a multiple of 2*cp*tp={2 * cp_size * tp_size}; use one that is")
    check_media_root(data.media_root, "data.media_root")
    check_reader(data.video_reader)
    text = open_text(data, vocab_size)
    limits = media_limits(data, tokens_per_tile=tokens_per_tile, tile_size=tile_size)
    with written_below(index_folder(data), "data.index"):
        prepared = prepare(data, limits, text.tokenizer, again=again, progress=progress)
        counts = plan_on_disk(prepared, data, num_packs)
    return PackDataset(
        settings=data, text=text, limits=limits, prepared=prepared, pack_counts=counts, normalization=normalization
    )


def open_text(data: DataConfig, vocab_size: int) -> TextEncoding:
    """Tokenizer and template of a recipe.

    Raises:
        ValueError: they cannot be loaded, or the model has too few rows for the tokenizer.
    """
    template = get_template(data.template)
    tokenizer = load_tokenizer(data.tokenizer, template)
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"the tokenizer in {data.tokenizer} has {len(tokenizer)} entries, the model only model.language.vocab_size={vocab_size} rows; "
            f"set it to {len(tokenizer)} or more"
        )
    pad_id = tokenizer.convert_tokens_to_ids(template.pad_token)
    return TextEncoding(tokenizer=tokenizer, template=template, ids=vision_token_ids(tokenizer), pad_id=pad_id)
