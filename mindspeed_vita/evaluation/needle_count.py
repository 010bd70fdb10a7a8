"""What a needle test will cost, before a model is loaded: requests, frames, tokens, and the tokens that the prefix cache saves."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mindspeed_vita.data.assemble import EncodedSample
from mindspeed_vita.evaluation.needle_cases import Case
from mindspeed_vita.evaluation.needle_frames import Hay
from mindspeed_vita.evaluation.needle_grid import Grid
from mindspeed_vita.evaluation.needle_media import NeedleMedia
from mindspeed_vita.inference.block_names import BlockNames, TileSpan, pooled_digest
from mindspeed_vita.inference.prompt import PromptEncoder
from mindspeed_vita.inference.request import Request, ask
from mindspeed_vita.inference.steps import BLOCK_SIZE

ANSWER_TOKENS = 32
"""Most tokens of an answer."""


@dataclass(frozen=True)
class Cost:
    """Of some requests."""

    requests: int = 0
    frames: int = 0
    """Over all requests; a frame that is shown twice counts twice."""
    tokens: int = 0
    """Of all prompts: what is computed without a prefix cache."""
    computed: int = 0
    """Prompt tokens that are computed where the cache holds what was computed before."""
    longest: int = 0
    """Tokens of the longest prompt."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.requests + other.requests,
            self.frames + other.frames,
            self.tokens + other.tokens,
            self.computed + other.computed,
            max(self.longest, other.longest),
        )

    @property
    def reused(self) -> float:
        """Share of the tokens that the prefix cache saves."""
        return 1 - self.computed / self.tokens


class PromptSizes:
    """The prompts of cases without their pictures: tokens depend on the number of frames and on the question alone.

    Args:
        prompts: of the checkpoint; its recipe's max_frames is at least the longest haystack.
        media: video or pictures.
        folder: an empty folder for the time of the counting.
    """

    def __init__(self, prompts: PromptEncoder, media: str, folder: Path) -> None:
        self._prompts, self._media, self._folder = prompts, media, folder
        self._known: dict[tuple[int, str], EncodedSample] = {}

    def encode(self, case: Case) -> EncodedSample:
        """The prompt of a case; each picture is the same.

        Raises:
            ValueError: a frame of the video would not be taken, or the model has fewer positions than prompt and answer need.
        """
        key = case.length, case.question
        if key not in self._known:
            self._known[key] = self._checked(*key)
        return self._known[key]

    def _request(self, length: int, question: str) -> Request:
        drawn = NeedleMedia(self._folder, self._prompts.recipe.model.vision.tile_size)
        (picture,) = drawn.draw([Hay(0)])
        if self._media == "pictures":
            return ask(question, images=[str(picture)] * length)
        film = self._folder / f"film_{length}"
        if not film.exists():
            film.mkdir()
            for number in range(length):
                (film / f"{number:06d}.png").symlink_to(picture)
        return ask(question, videos=[str(film)])

    def _checked(self, length: int, question: str) -> EncodedSample:
        prompt = self._prompts.encode(self._request(length, question))
        data, positions = self._prompts.recipe.data, self._prompts.recipe.model.language.max_positions
        if self._media == "video" and prompt.media[0].num_tiles != length:
            raise ValueError(
                f"of a video of {length} frames, one per second, {prompt.media[0].num_tiles} are taken: the checkpoint's data.max_fps is "
                f"{data.max_fps:g}, its data.frame_sampler {data.frame_sampler}; ask with --media pictures"
            )
        needed = len(prompt.tokens_T) + ANSWER_TOKENS
        if needed > positions:
            short = len(self._prompts.encode(self._request(1, question)).tokens_T) + ANSWER_TOKENS
            room = 1 + (positions - short) * (length - 1) // max(needed - short, 1)
            raise ValueError(
                f"a haystack of {length} frames takes {needed:,} positions with question and answer, the model has {positions:,}: take "
                f"lengths up to {max(room, 0)}, stretch the positions with --rope-scaling, or give frames fewer tokens with --frame-pooling"
            )
        return prompt


def check_lengths(grid: Grid, prompts: PromptEncoder) -> None:
    """Encodes the longest prompt of each question.

    Raises:
        ValueError: as PromptSizes.encode.
    """
    longest = {case.question: case for case in sorted(grid.cases(), key=lambda case: case.length)}
    with tempfile.TemporaryDirectory(prefix="needles_") as folder:
        sizes = PromptSizes(prompts, grid.media, Path(folder))
        for case in sorted(longest.values(), key=lambda case: -len(case.question)):
            sizes.encode(case)


def count(cases: Sequence[Case], prompts: PromptEncoder, media: str) -> dict[int, Cost]:
    """The cost of cases by length, asked in this order.

    The cache is taken to hold all that may be needed again: the longest prompt twice is enough for the order of Grid.cases. LongRoPE's two
    kinds of keys are not told apart.

    Args:
        cases: what is asked.
        prompts: of the checkpoint.
        media: video or pictures.

    Raises:
        ValueError: as PromptSizes.encode.
    """
    length_of_tile = prompts.recipe.model.tokens_per_tile
    known: set[bytes] = set()
    found: dict[int, Cost] = {}
    with tempfile.TemporaryDirectory(prefix="needles_") as folder:
        sizes = PromptSizes(prompts, media, Path(folder))
        for case in cases:
            prompt = sizes.encode(case)
            num_tokens = len(prompt.tokens_T)
            names = BlockNames(b"", prompt.tokens_T, _spans(case, prompt, length_of_tile), BLOCK_SIZE).names
            usable = names[: (num_tokens - 1) // BLOCK_SIZE]  # the last token is always computed: the answer begins from it
            cached = next((place for place, name in enumerate(usable) if name not in known), len(usable))
            known.update(names)
            cost = Cost(1, case.length, num_tokens, num_tokens - cached * BLOCK_SIZE, num_tokens)
            found[case.length] = found.get(case.length, Cost()) + cost
    return dict(sorted(found.items()))


def _spans(case: Case, prompt: EncodedSample, length: int) -> list[TileSpan]:
    """Where the tiles stand, with digests that are equal where the frames are."""
    frames, spans = case.frames(), []
    per_frame = len(prompt.tile_starts_N) // len(frames)
    digests = [hashlib.sha256(f"{frame.name} {tile}".encode()).digest() for frame in frames for tile in range(per_frame)]
    for start, factor, digest in zip(prompt.tile_starts_N.tolist(), prompt.factors_N.tolist(), digests, strict=True):
        spans.append(TileSpan(start, start + length // factor**2, pooled_digest(digest, factor)))
    return spans
