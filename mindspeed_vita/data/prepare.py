"""Index, columns and packing plans of a recipe's mixture on disk: made where they are missing, found where they are not."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mindspeed_vita.addresses import is_address
from mindspeed_vita.config.recipe import DataConfig
from mindspeed_vita.data.budget import FREE_FAILURES, kind_of
from mindspeed_vita.data.columns import ColumnWriter, SampleIndex
from mindspeed_vita.data.crew import Crew, IndexSettings
from mindspeed_vita.data.fit_index import DrawnFile, FitSettings, Fitter, SkippedSample
from mindspeed_vita.data.formats import holds_media
from mindspeed_vita.data.index_file import IndexHead, read_batches
from mindspeed_vita.data.indexing import FileToIndex, OnProgress, index_files
from mindspeed_vita.data.media.limits import DecodeSettings, MediaLimits
from mindspeed_vita.data.mixture import SourceSpec, load_mixture
from mindspeed_vita.data.packing import plan_grouped_packs, plan_packs
from mindspeed_vita.data.plan_file import EpochPlan, measure_packs, open_plan, write_plan
from mindspeed_vita.data.rows import row_place
from mindspeed_vita.data.tokenizer import tokenizer_fingerprint
from mindspeed_vita.files.publish import whole_folder
from mindspeed_vita.files.store_cache import StoreCache
from mindspeed_vita.files.stores import Store, cache_folder
from mindspeed_vita.hf.tiling import background
from mindspeed_vita.wording import counted

_FORMAT = 2
"""Raised when the same index and settings would give other packs."""
_META = "prepared.json"
# Settings that change where data lies, how fast it loads or when a run stops, but not one token of a pack. What pixels changes in the
# sizes of pictures is in the digests; without it, runs that began before there was this setting can go on, with either of its values.
_NOT_IN_FINGERPRINT = {
    *("mixture", "media_root", "tokenizer", "index", "index_processes", "num_workers", "prefetch", "quarantine", "failure_budget"),
    *("store_cache", "store_cache_bytes"),
    "pixels",
    *("loader_seconds", "tokenize_once"),
    *("video_reader", "decode_seconds", "decode_memory", "max_media_bytes", "max_pixels", "max_video_frames", "max_video_seconds"),
}

_UNGROUPED = ("group", 1)
"""As if the setting were not there, so that runs that began before it was can go on."""


@dataclass(frozen=True)
class Prepared:
    """A mixture that is ready to be packed."""

    folder: Path
    fingerprint: str
    """sha256 over what was measured, tokenizer, mixture and settings: equal fingerprints give equal packs."""
    sources: tuple[str, ...]
    files: tuple[dict[str, Any], ...]
    """path, rows_path, is_array and root of each file."""
    samples: tuple[int, ...]
    """Drawn samples of each source."""
    num_tokens: int
    """Of all drawn samples."""
    num_tiles: int
    index: SampleIndex
    skipped: tuple[SkippedSample, ...]

    def epoch(self, epoch: int) -> EpochPlan | None:
        """The plan of an epoch, if it was written."""
        return open_plan(self.folder / f"epoch_{epoch:05d}")


def decode_settings(data: DataConfig, normalization: str = "imagenet") -> DecodeSettings:
    """The caps and choices of the recipe; the tower's normalisation tells the colour around padded squares."""
    return DecodeSettings(
        seconds=data.decode_seconds,
        max_bytes=data.max_media_bytes,
        max_pixels=data.max_pixels,
        max_video_frames=data.max_video_frames,
        max_video_seconds=data.max_video_seconds,
        memory=data.decode_memory,
        reader=data.video_reader,
        resize=data.resize,
        tiling=data.tiling,
        pixels=data.pixels,
        colour=background(normalization),
        scale_in_decoder=data.scale_in_decoder,
        by_time=data.frame_sampler == "time",
        store_cache=store_cache(data).folder,
        store_cache_bytes=data.store_cache_bytes,
    )


def store_cache(data: DataConfig) -> StoreCache:
    """Where files of object stores lie."""
    return StoreCache(str(Path(data.store_cache or cache_folder() / "data").absolute()), data.store_cache_bytes)


def check_media_root(root: str, key: str) -> None:
    """Refuses a root that is not there.

    Args:
        root: folder, address in an object store, or nothing.
        key: the recipe's name for it.

    Raises:
        ValueError: it is not there, or its store cannot be reached.
    """
    if is_address(root):
        if not Store(root).is_there():
            raise ValueError(f"{key}={root!r}: nothing is there; set it to the address that media paths start from")
    elif root and not Path(root).is_dir():
        raise ValueError(f"{key}={root!r} is no folder; set it to the folder that media paths start from")


def media_root(data: DataConfig, path: str, format_name: str = "") -> str:
    """The folder that media of a file of samples lie below: its own where it holds them itself, as shards and Parquet files do.

    Where such a file is a symbolic link, the link itself is given: what it leads to may lie elsewhere, as in Hugging Face's cache, but
    nothing else outside its folder may.
    """
    if not holds_media(path, format_name):
        cache = store_cache(data)
        own = cache.file_address(path)
        root = data.media_root or (own.rpartition("/")[0] if own is not None else str(Path(path).parent))
        return cache.media_folder(root) if is_address(root) else root
    return path if os.path.islink(path) else str(Path(path).parent)


def index_folder(data: DataConfig) -> Path:
    """Where index and plans lie."""
    return Path(data.index) if data.index else Path(data.mixture).parent / "vita_index"


def index_mixture(
    data: DataConfig, tokenizer: Any, *, again: bool = False, progress: OnProgress | None = None
) -> list[tuple[SourceSpec, list[tuple[Path, IndexHead]]]]:
    """The index of every file of the mixture; what is missing or out of date is made.

    Args:
        data: the recipe's section.
        tokenizer: loaded from data.tokenizer.
        again: also look again at files of which samples were skipped.
        progress: called as it goes.

    Raises:
        ValueError: the mixture or a row is wrong.
        OSError: the folder cannot be written.
    """
    settings = IndexSettings(tokenizer=tokenizer, template=data.template, decoding=decode_settings(data))
    folder, key = index_folder(data), settings.key()
    with Crew(settings, data.index_processes or len(os.sched_getaffinity(0))) as crew:
        specs = load_mixture(data.mixture, store_cache(data))
        files = [FileToIndex(path, media_root(data, path, spec.format), spec.format) for spec in specs for path in spec.paths]
        indexed = iter(index_files(folder, files, crew, key=key, again=again, progress=progress))
        return [(spec, list(islice(indexed, len(spec.paths)))) for spec in specs]


def skipped_rows(data: DataConfig, tokenizer: Any, *, progress: OnProgress | None = None) -> list[SkippedSample]:
    """Every row of the mixture that the index leaves out, drawn or not, whatever the budget says.

    Raises:
        ValueError: the mixture or a row is wrong.
        OSError: the folder of the index cannot be written.
    """
    found = []
    for spec, files in index_mixture(data, tokenizer, progress=progress):
        for parquet, head in files:
            for table in read_batches(parquet, ["place", "reason", "media_at_fault"]) if head.num_skipped else ():
                for row in table.filter(table.column("reason").is_valid()).to_pylist():
                    where = row_place(head.path, row["place"], head.is_array)
                    found.append(SkippedSample(where, row["reason"], spec.name, row["media_at_fault"], True))
    return found


def prepare(data: DataConfig, limits: MediaLimits, tokenizer: Any, *, progress: OnProgress | None = None, again: bool = False) -> Prepared:
    """Index and columns of a mixture.

    Raises:
        ValueError: the mixture or a row is wrong, a source has no usable sample, or too much of it is unusable.
        OSError: the folder cannot be written.
    """
    indexed = index_mixture(data, tokenizer, again=again, progress=progress)
    fingerprint = _fingerprint(data, limits, tokenizer, indexed)
    places = [str(Path(head.rows_path).absolute()) for _, files in indexed for _, head in files]
    name = hashlib.sha256(json.dumps([fingerprint, data.media_root, places]).encode()).hexdigest()[:16]
    folder = index_folder(data) / "plans" / name
    if not (folder / _META).exists():
        _write(folder, data, limits, fingerprint, indexed)
    return _open(folder)


def plan_epoch(prepared: Prepared, data: DataConfig, epoch: int) -> EpochPlan:
    """The plan of an epoch: mapped where it was written, made in memory where not."""
    found = prepared.epoch(epoch)
    if found is not None:
        return found
    index = prepared.index
    lengths = np.asarray(index.num_tokens)[index.draws]
    sources = np.asarray(index.source_ids)[index.draws]
    settings: dict[str, Any] = {"capacity": data.seq_length, "mode": data.packing, "seed": data.seed, "epoch": epoch}
    if data.group == 1:
        packs = plan_packs(lengths, sources, **settings)
    else:
        packs = plan_grouped_packs(lengths, sources, np.asarray(index.groups, dtype=np.int64), **settings)
    return measure_packs(packs, lengths, np.asarray(index.num_tiles)[index.draws])


def plan_on_disk(prepared: Prepared, data: DataConfig, num_packs: int) -> list[int]:
    """Writes the plans of as many epochs as hold num_packs, at least one; returns the packs of each."""
    counts: list[int] = []
    while not counts or sum(counts) < num_packs:
        epoch = len(counts)
        plan = prepared.epoch(epoch)
        if plan is None:
            plan = plan_epoch(prepared, data, epoch)
            write_plan(prepared.folder / f"epoch_{epoch:05d}", plan)
        counts.append(len(plan.packs))
    return counts


def _fingerprint(
    data: DataConfig, limits: MediaLimits, tokenizer: Any, indexed: Sequence[tuple[SourceSpec, list[tuple[Path, IndexHead]]]]
) -> str:
    parts = {
        "format": _FORMAT,
        "sources": [(spec.name, spec.ratio, spec.num, [head.digest for _, head in files]) for spec, files in indexed],
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "settings": {key: value for key, value in asdict(data).items() if key not in _NOT_IN_FINGERPRINT and (key, value) != _UNGROUPED},
        "limits": asdict(limits),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write(
    folder: Path,
    data: DataConfig,
    limits: MediaLimits,
    fingerprint: str,
    indexed: Sequence[tuple[SourceSpec, list[tuple[Path, IndexHead]]]],
) -> None:
    share = data.seq_length // data.group
    settings = FitSettings(seq_length=share, max_images=data.max_images, limits=limits, group=data.group)
    files: list[dict[str, Any]] = []
    skipped: list[SkippedSample] = []
    with whole_folder(folder, known_by=_META) as temporary:
        with ColumnWriter(temporary) as writer:
            fitter = Fitter(writer, settings)
            for source_id, (spec, indexes) in enumerate(indexed):
                num_rows, num_before = 0, writer.num_draws
                for place, (parquet, head) in enumerate(indexes):
                    rows = _drawn_rows(spec, place, head, data)
                    num_rows += min(len(rows), head.num_rows)  # repeats come only after every row was drawn
                    fitter.add(DrawnFile(parquet, head, rows, source_id, spec.name, len(files)))
                    root = media_root(data, head.path, spec.format)
                    files.append({"path": head.path, "rows_path": head.rows_path, "is_array": head.is_array, "root": root})
                here = fitter.flush()
                skipped += here
                if writer.num_draws == num_before:
                    raise ValueError(_why_empty(data, spec.name, [head for _, head in indexes], here))
                _check_budget(data, spec.name, num_rows, here)
        _describe(temporary, fingerprint, [spec.name for spec, _ in indexed], files, skipped)


def _drawn_rows(spec: SourceSpec, place: int, head: IndexHead, data: DataConfig) -> np.ndarray:
    """Rows of a file that an epoch draws, group by group: int64.

    Raises:
        ValueError: the file has no whole number of groups.
    """
    if data.group == 1:
        return spec.draw(place, head.num_rows, data.seed)
    if head.num_rows % data.group:
        raise ValueError(
            f"{head.path} has {head.num_rows:,} rows, and data.group={data.group} takes {data.group} consecutive ones together: "
            "complete the last group, or set data.group to 1"
        )
    groups = spec.draw(place, head.num_rows // data.group, data.seed)
    return (groups[:, None] * data.group + np.arange(data.group)).reshape(-1)


def _describe(
    folder: Path, fingerprint: str, sources: list[str], files: list[dict[str, Any]], skipped: list[SkippedSample]
) -> None:
    index = SampleIndex.open(folder)
    content = {
        "fingerprint": fingerprint,
        "sources": sources,
        "files": files,
        "samples": np.bincount(np.asarray(index.source_ids)[index.draws], minlength=len(sources)).tolist(),
        "num_tokens": int(np.asarray(index.num_tokens)[index.draws].sum(dtype=np.int64)),
        "num_tiles": int(np.asarray(index.num_tiles)[index.draws].sum(dtype=np.int64)),
    }
    (folder / "skipped.jsonl").write_text("".join(json.dumps(asdict(item)) + "\n" for item in skipped))
    (folder / _META).write_text(json.dumps(content, indent=1) + "\n")


def _open(folder: Path) -> Prepared:
    content = json.loads((folder / _META).read_text())
    lines = (folder / "skipped.jsonl").read_text().splitlines()
    return Prepared(
        folder=folder,
        fingerprint=content["fingerprint"],
        sources=tuple(content["sources"]),
        files=tuple(content["files"]),
        samples=tuple(content["samples"]),
        num_tokens=content["num_tokens"],
        num_tiles=content["num_tiles"],
        index=SampleIndex.open(folder),
        skipped=tuple(SkippedSample(**json.loads(line)) for line in lines),
    )


def _why_empty(data: DataConfig, source: str, heads: Sequence[IndexHead], skipped: Sequence[SkippedSample]) -> str:
    names = ", ".join(f"{head.path} ({counted(head.num_rows, 'row')})" for head in heads)
    why = f"all were skipped: {skip_summary(skipped)}" if skipped else "no rows are drawn, which follows from ratio and num"
    return (
        f"source {source!r} of {data.mixture} has no usable sample: {names}: {why}; correct it and run `vita data index`, or set its "
        "ratio to 0 to go without it"
    )


def _check_budget(data: DataConfig, source: str, num_rows: int, skipped: Sequence[SkippedSample]) -> None:
    """Compares faulty rows with distinct drawn ones: a row that is drawn again is no further good sample."""
    bad = [item for item in skipped if item.at_fault]
    if len(bad) > max(FREE_FAILURES, data.failure_budget * num_rows):
        num_media = sum(item.media_at_fault for item in bad)
        raise ValueError(
            f"source {source!r} of {data.mixture}: {len(bad):,} of {num_rows:,} drawn rows cannot be used ({num_media:,} for their media, "
            f"{len(bad) - num_media:,} for the row itself), data.failure_budget={data.failure_budget:g} allows "
            f"{int(data.failure_budget * num_rows):,}: {skip_summary(bad)}; "
            "correct the files (data.media_root?) and run `vita data index`, or raise the budget"
        )


def skip_summary(skipped: Sequence[SkippedSample]) -> str:
    """Count, the commonest kinds of reasons, and one place to look at."""
    kinds = Counter(kind_of(item.reason) for item in skipped)
    shown = "; ".join(f"{count} x {kind}" for kind, count in kinds.most_common(3))
    return f"{len(skipped):,} ({shown}), first at {skipped[0].where}: {skipped[0].reason}"
