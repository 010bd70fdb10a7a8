"""Where the tokens of pictures and videos stand: the published Long-VITA layout, used by training and by the exported processor.

A leaf (standard library only): it is copied into exported checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

VISION_TOKENS = (
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<vid>",
    "</vid>",
    "<VID_CONTEXT>",
    "<patch>",
    "</patch>",
    "<PATCH_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
    "<image>",
    "<video>",
)
"""Tokens that Long-VITA adds to Qwen2.5, in released order (ids 151665 to 151681 there)."""

PLACEHOLDERS = ("<IMG_CONTEXT>", "<VID_CONTEXT>", "<PATCH_CONTEXT>")
"""Tokens whose embeddings vision rows replace."""

WRITTEN_TOKENS = ("<image>", "<video>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
"""Special tokens that the text of a turn may hold: tags of media, and what marks names and boxes. All others are refused."""

NEWLINE_TOKENS = ("Ċ", "<0x0A>")
"""How a byte-level vocabulary, and one with byte fallback, spells the line feed that starts each row of tiles."""

_FIELDS = (
    *("img", "img_end", "img_context", "vid", "vid_end", "vid_context"),
    *("patch", "patch_end", "patch_context", "image_tag", "video_tag", "newline"),
)


@dataclass(frozen=True)
class VisionTokenIds:
    """Ids of the vision tokens in one tokenizer."""

    img: int
    img_end: int
    img_context: int
    vid: int
    vid_end: int
    vid_context: int
    patch: int
    patch_end: int
    patch_context: int
    image_tag: int
    video_tag: int
    newline: tuple[int, ...]

    @classmethod
    def from_lookup(cls, lookup: Callable[[str], int | None]) -> VisionTokenIds:
        """Looks every token up.

        Args:
            lookup: id of a token, or None where the vocabulary lacks it (``tokenizer.get_vocab().get``;
                ``convert_tokens_to_ids`` gives missing tokens the id of the unknown token).

        Raises:
            ValueError: a token is missing.
        """
        newline = next((token for token in NEWLINE_TOKENS if lookup(token) is not None), NEWLINE_TOKENS[0])
        names = dict(zip(_FIELDS, (*VISION_TOKENS[:9], *VISION_TOKENS[-2:], newline)))
        found = {field: lookup(token) for field, token in names.items()}
        missing = ", ".join(names[field] for field, number in found.items() if number is None)
        if missing:
            raise ValueError(f"the tokenizer lacks {missing}; expected the Long-VITA vision tokens: add {VISION_TOKENS} in this order")
        values: dict[str, Any] = {field: int(number) for field, number in found.items() if number is not None}
        return cls(**{**values, "newline": (values["newline"],)})

    @property
    def placeholders(self) -> tuple[int, int, int]:
        """The three context tokens, whose embeddings vision rows replace."""
        return self.img_context, self.vid_context, self.patch_context


class ReservedText:
    """Finds special tokens in what people write. There they would act as the template's own, so they are refused, never learnt.

    Training, the processor and generation use this one rule.

    Args:
        tokenizer: of transformers; None: only the vision tokens are found.
    """

    def __init__(self, tokenizer: Any) -> None:
        added = tokenizer.added_tokens_decoder.values() if tokenizer is not None else ()
        special = {str(token) for token in added if token.special}
        names = sorted((special | set(VISION_TOKENS)) - set(WRITTEN_TOKENS), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names)))

    def problem(self, text: str) -> str | None:
        """What is wrong with a text, or None."""
        found = self._pattern.search(text)
        return f"the text holds a reserved token ({found[0]} at {found.start()}); remove it or write it otherwise" if found else None


class MediaLayout(NamedTuple):
    """Tokens of one picture or video."""

    token_ids: list[int]
    """What replaces the tag."""
    tile_starts: list[int]
    """Offset in token_ids of each tile's first context token, in tile order."""


class Expanded(NamedTuple):
    """A sequence whose tags have been replaced."""

    token_ids: list[int]
    """Tokens with every <image> and <video> expanded."""
    origins: list[int]
    """Index of each token in the sequence before, -1 for tokens that came from a tag: those are never supervised."""
    tile_starts: list[int]
    """Position of each tile's first context token, in order of appearance."""


def image_layout(ids: VisionTokenIds, num_tiles: int, grid: tuple[int, int], tokens_per_tile: int) -> MediaLayout:
    """Lays out a picture: the thumbnail (or the only tile), then one line of tiles per row of the grid.

    Args:
        ids: vision token ids.
        num_tiles: tiles including the thumbnail: 1, or columns * rows + 1.
        grid: (columns, rows).
        tokens_per_tile: context tokens of a tile.

    Raises:
        ValueError: the number of tiles does not belong to the grid.
    """
    columns, rows = grid
    expected = image_tile_count(grid)
    if num_tiles != expected:
        raise ValueError(f"found {num_tiles} tiles for a grid of {columns}x{rows}, expected {expected}")
    tokens = [ids.img, *[ids.img_context] * tokens_per_tile, ids.img_end]
    starts = [1]
    if num_tiles == 1:
        return MediaLayout(tokens, starts)
    tile = [ids.patch, *[ids.patch_context] * tokens_per_tile, ids.patch_end]
    for _ in range(rows):
        tokens.extend(ids.newline)
        first = len(tokens) + 1
        starts.extend(range(first, first + columns * len(tile), len(tile)))
        tokens.extend(tile * columns)
    return MediaLayout(tokens, starts)


def video_layout(ids: VisionTokenIds, num_frames: int, tokens_per_tile: int, factors: Sequence[int] = ()) -> MediaLayout:
    """Lays out a video: its frames one after the other, without separator or timestamp.

    Args:
        ids: vision token ids.
        num_frames: frames.
        tokens_per_tile: context tokens of a frame.
        factors: by how much each frame is pooled (frame_pooling.py); empty: none is.
    """
    assert not factors or len(factors) == num_frames, (len(factors), num_frames)
    tokens: list[int] = []
    starts: list[int] = []
    for factor in factors or [1] * num_frames:
        starts.append(len(tokens) + 1)
        tokens += [ids.vid, *[ids.vid_context] * (tokens_per_tile // factor**2), ids.vid_end]
    return MediaLayout(tokens, starts)


def image_tile_count(grid: tuple[int, int]) -> int:
    """Tiles of a picture: those of its grid, and a thumbnail where there is more than one."""
    tiles = grid[0] * grid[1]
    return tiles + 1 if tiles > 1 else 1


def image_token_count(grid: tuple[int, int], tokens_per_tile: int, newline_tokens: int = 1) -> int:
    """Tokens of a picture, without building them."""
    newlines = grid[1] * newline_tokens if grid[0] * grid[1] > 1 else 0
    return image_tile_count(grid) * (tokens_per_tile + 2) + newlines


def video_token_count(num_frames: int, tokens_per_tile: int) -> int:
    """Tokens of a video, without building them."""
    return num_frames * (tokens_per_tile + 2)


def in_tag_order(
    input_ids: Sequence[int], ids: VisionTokenIds, images: Sequence[MediaLayout], videos: Sequence[MediaLayout]
) -> list[MediaLayout]:
    """Merges pictures and videos, each in its own order, into the order of their tags.

    Raises:
        ValueError: there are more or fewer tags than pictures or videos.
    """
    tags = [token for token in input_ids if token in (ids.image_tag, ids.video_tag)]
    for name, tag, given in (("image", ids.image_tag, images), ("video", ids.video_tag, videos)):
        if tags.count(tag) != len(given):
            raise ValueError(f"found {tags.count(tag)} <{name}> tags for {len(given)} {name}s, expected one tag each")
    next_image, next_video = iter(images), iter(videos)
    return [next(next_image if tag == ids.image_tag else next_video) for tag in tags]


def expand(input_ids: Sequence[int], ids: VisionTokenIds, media: Sequence[MediaLayout]) -> Expanded:
    """Replaces every <image> and <video> in one pass from left to right, in any order.

    Args:
        input_ids: tokens with one tag per picture or video.
        ids: vision token ids.
        media: layouts in the order of the tags (see in_tag_order).

    Raises:
        ValueError: the number of tags differs from the number of layouts, or a layout stands at a tag of the other kind.
    """
    tags = [position for position, token in enumerate(input_ids) if token in (ids.image_tag, ids.video_tag)]
    if len(tags) != len(media):
        raise ValueError(f"found {len(tags)} <image> and <video> tags for {len(media)} pictures and videos, expected one tag each")
    tokens: list[int] = []
    origins: list[int] = []
    starts: list[int] = []
    done = 0
    for position, layout in zip(tags, media):
        if layout.token_ids and (layout.token_ids[0] == ids.vid) != (input_ids[position] == ids.video_tag):
            tag, found = ("<video>", "a picture") if input_ids[position] == ids.video_tag else ("<image>", "a video")
            raise ValueError(f"found {found} for the {tag} at token {position}; give pictures and videos in the order of their tags")
        tokens.extend(input_ids[done:position])
        origins.extend(range(done, position))
        starts.extend(len(tokens) + offset for offset in layout.tile_starts)
        tokens.extend(layout.token_ids)
        origins.extend([-1] * len(layout.token_ids))
        done = position + 1
    tokens.extend(input_ids[done:])
    origins.extend(range(done, len(input_ids)))
    return Expanded(tokens, origins, starts)
