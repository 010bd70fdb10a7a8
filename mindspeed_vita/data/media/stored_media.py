"""Media of an object store, fetched before the decoder process is asked for them: it reads files of this host only, within its limits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mindspeed_vita.data.at_work import note
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.media.paths import MediaError, frames_reference, split_frames, split_member
from mindspeed_vita.files.store_cache import StoreCache

if TYPE_CHECKING:
    from mindspeed_vita.data.media.decoder import Job


def fetch_media(jobs: Sequence[Job], settings: DecodeSettings) -> list[Job | MediaError]:
    """The jobs with their files here, or why one cannot be had. Jobs whose root is no folder of the cache come back as they are.

    Raises:
        StoreError: the store cannot be reached, or refuses: the run ends, as the medium may be sound.
        OSError: the cache cannot be written.
    """
    done: list[Job | MediaError] = list(jobs)
    by_root: dict[str, list[int]] = {}
    for number, job in enumerate(jobs):
        by_root.setdefault(str(job.request["root"]), []).append(number)
    cache = StoreCache(settings.store_cache, settings.store_cache_bytes)
    for root, numbers in by_root.items():
        address = cache.media_address(root) if settings.store_cache else None
        if address is None:
            continue
        paths = {number: _below(str(jobs[number].request["path"]), address) for number in numbers}
        needed = {number: _needed(path) for number, path in paths.items()}
        note(f"{address}: {paths[numbers[0]]}")
        os.makedirs(root, exist_ok=True)
        reasons = cache.media(root, [name for names in needed.values() for name in names])
        for number in numbers:
            missing = next((name for name in needed[number] if reasons[name] is not None), None)
            if missing is not None:
                done[number] = MediaError(missing, reasons[missing] or "")
            else:
                done[number] = replace(jobs[number], request={**jobs[number].request, "path": paths[number]})
    return done


def fetch_medium(path: str, root: str, settings: DecodeSettings) -> str:
    """The path of one medium below its root, with its file here. A root that is no folder of the cache changes nothing.

    Raises:
        MediaError: there is no such object.
        StoreError: as fetch_media.
    """
    from mindspeed_vita.data.media.decoder import Job

    (found,) = fetch_media([Job.header(path, root, False)], settings)
    if isinstance(found, MediaError):
        raise found
    return str(found.request["path"])


def _below(path: str, address: str) -> str:
    """A path of a row, relative to the root: rows may hold whole addresses of objects below it."""
    frames = split_frames(path)
    if frames is not None:
        return frames_reference([_below(frame, address) for frame in frames])
    return path.removeprefix(f"{address}/")


def _needed(path: str) -> list[str]:
    """Names of the objects, or of the folder, that a path is about. None for what leads out of the root: the decoder refuses that."""
    frames = split_frames(path)
    if frames is not None:
        return [name for frame in frames for name in _needed(frame)]
    container = split_member(path)
    name = os.path.normpath(container[0] if container is not None else path)
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return []
    outside = os.path.isabs(name) or name in ("", ".", "..") or name.startswith("../") or "\0" in name or "://" in path
    return [] if outside else [name]
