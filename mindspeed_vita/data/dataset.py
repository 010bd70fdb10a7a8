"""Packs by number: the sample index, the packing plan of each epoch, and the assembly of a pack. In memory, behind a small interface."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_vita.config.recipe import DataConfig
from mindspeed_vita.data.assemble import EncodedSample, Medium, assemble_pack, encode_sample
from mindspeed_vita.data.batch import PackedBatch
from mindspeed_vita.data.fitting import MediaLimits
from mindspeed_vita.data.index import IndexBuilder, SampleIndex, SkippedSample
from mindspeed_vita.data.mixture import load_mixture
from mindspeed_vita.data.packing import PackPlan, plan_packs
from mindspeed_vita.data.sources import RowFile, read_rows
from mindspeed_vita.data.templates import ChatTemplate, get_template
from mindspeed_vita.data.tokenizer import load_tokenizer, tokenizer_fingerprint, vision_token_ids
from mindspeed_vita.hf.token_layout import VisionTokenIds

_FORMAT = 1
"""Raised when the same index and settings would give other packs."""
# Settings that change where data lies or how fast it loads, but not one token of a pack.
_NOT_IN_FINGERPRINT = ("mixture", "media_root", "tokenizer", "num_workers", "quarantine")


@dataclass(frozen=True, kw_only=True)
class _Text:
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
        text: _Text,
        limits: MediaLimits,
        files: Sequence[RowFile],
        source_names: Sequence[str],
        index: SampleIndex,
        draws: np.ndarray,
        skipped: Sequence[SkippedSample],
    ) -> None:
        self.settings = settings
        self.tokenizer = text.tokenizer
        self.index = index
        self.source_names = tuple(source_names)
        """Entries of the mixture; PackedBatch.source_ids points here."""
        self.skipped = tuple(skipped)
        """Samples left out of the index, each with its reason."""
        self._text = text
        self._limits = limits
        self._files = tuple(files)
        self._draws = draws
        self._plans: dict[int, PackPlan] = {}
        self._pack_counts: list[int] = []
        self.fingerprint = self._fingerprint()
        """sha256 over index, tokenizer, template and settings: equal fingerprints give equal packs."""

    @property
    def num_samples(self) -> int:
        """Samples drawn per epoch; a ratio above 1 counts repeats."""
        return len(self._draws)

    def num_packs(self, epoch: int) -> int:
        """Packs of one epoch; the count can differ by a few between epochs."""
        while len(self._pack_counts) <= epoch:
            self._pack_counts.append(len(self._plan(len(self._pack_counts))))
        return self._pack_counts[epoch]

    def locate(self, number: int) -> tuple[int, int]:
        """(epoch, pack in that epoch) of a global pack number."""
        epoch = 0
        while number >= self.num_packs(epoch):
            number -= self.num_packs(epoch)
            epoch += 1
        return epoch, number

    def samples_of(self, number: int) -> np.ndarray:
        """Sample ids of a global pack number, in pack order: int64."""
        epoch, place = self.locate(number)
        return self._draws[self._plan(epoch).pack(place)]

    def __getitem__(self, number: int) -> PackedBatch:
        """The whole pack of that global number, all tiles decoded here."""
        return self.pack(number)

    def pack(self, number: int, *, group_rank: int = 0, group_size: int = 1, cp_size: int = 1, decode: bool = True) -> PackedBatch:
        """One pack with the tiles of one rank.

        Args:
            number: global pack number, from 0 over all epochs.
            group_rank: place in the tensor x context parallel group that shares the tiles.
            group_size: size of that group.
            cp_size: context-parallel size.
            decode: False leaves every tile out.
        """
        return assemble_pack(
            [self._encode(int(sample_id)) for sample_id in self.samples_of(number)],
            seq_length=self.settings.seq_length,
            resets=self.settings.resets,
            pad_id=self._text.pad_id,
            tile_size=self._limits.tile_size,
            group_rank=group_rank,
            group_size=group_size,
            cp_size=cp_size,
            decode=decode,
        )

    def describe(self) -> str:
        """One line on what was indexed and what was skipped, with the commonest reasons."""
        counts = np.bincount(self.index.source_ids[self._draws], minlength=len(self.source_names))
        sources = ", ".join(f"{name} {count:,}" for name, count in zip(self.source_names, counts))
        tokens = int(self.index.num_tokens[self._draws].sum())
        tiles = int(self.index.num_tiles[self._draws].sum())
        packs = f"{self.num_packs(0):,} packs of {self.settings.seq_length:,}"
        line = f"{self.num_samples:,} samples ({sources}), {tokens:,} tokens, {tiles:,} tiles, {packs}"
        return line if not self.skipped else f"{line}; skipped {_skip_summary(self.skipped)}"

    def _encode(self, sample_id: int) -> EncodedSample:
        index = self.index
        file = self._files[index.file_ids[sample_id]]
        row = int(index.row_ids[sample_id])
        sample = file.sample(row).first_turns(int(index.num_messages[sample_id]))
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
            root=_media_root(self.settings, file),
        )
        assert len(encoded.tokens_T) == index.num_tokens[sample_id], (file.where(row), len(encoded.tokens_T))
        return encoded

    def _plan(self, epoch: int) -> PackPlan:
        if epoch not in self._plans:
            if len(self._plans) > 2:
                self._plans.pop(min(self._plans))
            self._plans[epoch] = plan_packs(
                self.index.num_tokens[self._draws],
                self.index.source_ids[self._draws],
                capacity=self.settings.seq_length,
                mode=self.settings.packing,
                seed=self.settings.seed,
                epoch=epoch,
            )
        return self._plans[epoch]

    def _fingerprint(self) -> str:
        settings = {key: value for key, value in asdict(self.settings).items() if key not in _NOT_IN_FINGERPRINT}
        parts = {
            "format": _FORMAT,
            "index": self.index.digest(),
            "draws": hashlib.sha256(np.ascontiguousarray(self._draws).tobytes()).hexdigest(),
            "sources": self.source_names,
            "tokenizer": tokenizer_fingerprint(self._text.tokenizer),
            "settings": settings,
            "limits": asdict(self._limits),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def build_data(
    data: DataConfig, *, tokens_per_tile: int, tile_size: int, vocab_size: int, tp_size: int = 1, cp_size: int = 1
) -> PackDataset:
    """Reads the mixture, indexes every drawn sample from its text and media headers, and returns the packs.

    Args:
        data: the recipe's section.
        tokens_per_tile: language-model tokens of one tile.
        tile_size: side of a tile, in pixels.
        vocab_size: rows of the embedding table.
        tp_size: tensor-parallel size.
        cp_size: context-parallel size.

    Raises:
        ValueError: a setting, the tokenizer, the mixture or a row is wrong, or a source has no usable sample.
    """
    if data.seq_length < 1 or data.seq_length % (2 * cp_size * tp_size):
        raise ValueError(f"data.seq_length={data.seq_length} is not a multiple of 2*cp*tp={2 * cp_size * tp_size}; use one that is")
    if data.media_root and not Path(data.media_root).is_dir():
        raise ValueError(f"data.media_root={data.media_root!r} is no folder; set it to the folder that media paths start from")
    text = _open_text(data, vocab_size)
    limits = MediaLimits(
        tokens_per_tile=tokens_per_tile,
        tile_size=tile_size,
        min_tiles=data.min_tiles,
        max_tiles=data.max_tiles,
        max_frames=data.max_frames,
        max_fps=data.max_fps,
        sampler=data.frame_sampler,
    )
    builder = IndexBuilder(
        tokenizer=text.tokenizer,
        template=text.template,
        ids=text.ids,
        limits=limits,
        seq_length=data.seq_length,
        max_images=data.max_images,
    )
    specs = load_mixture(data.mixture)
    files: list[RowFile] = []
    draws: list[np.ndarray] = []
    for source_id, spec in enumerate(specs):
        first_file, first_skipped = len(files), len(builder.skipped)
        for place, path in enumerate(spec.paths):
            file = read_rows(path)
            rows = spec.draw(place, len(file.rows), data.seed)
            draws.append(_index_rows(builder, file, len(files), source_id, rows, _media_root(data, file)))
            files.append(file)
        if not any(map(len, draws[first_file:])):
            raise ValueError(_why_empty(data, spec.name, files[first_file:], builder.skipped[first_skipped:]))
    return PackDataset(
        settings=data,
        text=text,
        limits=limits,
        files=files,
        source_names=[spec.name for spec in specs],
        index=builder.build(),
        draws=np.concatenate(draws),
        skipped=builder.skipped,
    )


def _open_text(data: DataConfig, vocab_size: int) -> _Text:
    template = get_template(data.template)
    tokenizer = load_tokenizer(data.tokenizer)
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"the tokenizer in {data.tokenizer} has {len(tokenizer)} entries, the model only model.language.vocab_size={vocab_size} rows; "
            f"set it to {len(tokenizer)} or more"
        )
    pad_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return _Text(tokenizer=tokenizer, template=template, ids=vision_token_ids(tokenizer), pad_id=pad_id)


def _why_empty(data: DataConfig, source: str, files: Sequence[RowFile], skipped: Sequence[SkippedSample]) -> str:
    names = ", ".join(f"{file.path} ({len(file.rows)} rows)" for file in files)
    why = f"all were skipped: {_skip_summary(skipped)}" if skipped else "no rows are drawn, which follows from ratio and num"
    return f"source {source!r} of {data.mixture} has no usable sample: {names}: {why}; correct it, or set its ratio to 0 to go without it"


def _index_rows(builder: IndexBuilder, file: RowFile, file_id: int, source_id: int, rows: np.ndarray, root: str) -> np.ndarray:
    """Sample ids of the drawn rows that could be indexed, in drawing order: int64. Each row is measured once."""
    unique, inverse = np.unique(rows, return_inverse=True)
    sample_ids = np.full(len(unique), -1, dtype=np.int64)
    for place, row in enumerate(unique.tolist()):
        added = builder.add(file.sample(row), where=file.where(row), root=root, place=(file_id, row, source_id), text=file.rows[row])
        sample_ids[place] = -1 if added is None else added
    drawn = sample_ids[inverse.reshape(-1)]
    return drawn[drawn >= 0]


def _media_root(data: DataConfig, file: RowFile) -> str:
    return data.media_root or str(Path(file.path).parent)


def _skip_summary(skipped: Sequence[SkippedSample]) -> str:
    """Count, the commonest kinds of reasons, and one place to look at."""
    kinds = Counter("".join("#" if char.isdigit() else char for char in item.reason.rpartition(": ")[2]) for item in skipped)
    shown = "; ".join(f"{count} x {kind}" for kind, count in kinds.most_common(3))
    return f"{len(skipped):,} ({shown}), first at {skipped[0].where}: {skipped[0].reason}"
