"""Augmentations of the quickstart's pictures: crop, flip, brightness, contrast, size and encoding, each drawn once and written down."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import av
from PIL import Image, ImageEnhance

NEAR = 0.02
"""Two crops are the same if no edge differs by more than this share of the side."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """One way to change a picture."""

    frame: int
    """Which frame of the subject (0 for a photo)."""
    left: float
    top: float
    width: float
    height: float
    """The crop, in shares of the sides."""
    flip: bool
    brightness: float
    contrast: float
    longer_side: int
    """Size afterwards, in pixels."""
    quality: int
    """Of the JPEG or WebP encoding."""

    def apply(self, picture: Image.Image) -> Image.Image:
        """The changed picture, RGB; both sides even, as video encoders ask."""
        w, h = picture.size
        box = (self.left * w, self.top * h, (self.left + self.width) * w, (self.top + self.height) * h)
        scale = self.longer_side / max(self.width * w, self.height * h)
        size = (_even(self.width * w * scale), _even(self.height * h * scale))
        picture = picture.resize(size, Image.Resampling.BICUBIC, box=box)
        if self.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return ImageEnhance.Contrast(ImageEnhance.Brightness(picture).enhance(self.brightness)).enhance(self.contrast)

    def same_crop(self, other: Augmentation) -> bool:
        """Whether both cut (nearly) the same piece, in the same direction, out of the same frame."""
        mine, theirs = ((a.left, a.top, a.width, a.height) for a in (self, other))
        return self.frame == other.frame and self.flip == other.flip and all(abs(a - b) <= NEAR for a, b in zip(mine, theirs))


def draw(frames: int, rng: random.Random) -> Augmentation:
    """Draws one augmentation: 55% to 100% of the area, the aspect ratio changed by up to 15%."""
    area, stretch = rng.uniform(0.55, 1.0), rng.uniform(0.87, 1.15)
    width, height = min(1.0, (area * stretch) ** 0.5), min(1.0, (area / stretch) ** 0.5)
    return Augmentation(
        frame=rng.randrange(frames), left=rng.uniform(0, 1 - width), top=rng.uniform(0, 1 - height), width=width, height=height,
        flip=rng.random() < 0.5, brightness=rng.uniform(0.75, 1.3), contrast=rng.uniform(0.8, 1.25),
        longer_side=rng.randint(112, 208), quality=rng.randint(60, 95),
    )  # fmt: skip


def draw_distinct(count: int, frames: int, rng: random.Random) -> list[Augmentation]:
    """Draws augmentations of which no two cut the same piece, so that a held-out one was never trained on."""
    drawn: list[Augmentation] = []
    while len(drawn) < count:
        candidate = draw(frames, rng)
        if not any(candidate.same_crop(other) for other in drawn):
            drawn.append(candidate)
    return drawn


def save_picture(picture: Image.Image, path: Path, quality: int) -> None:
    """Writes JPEG, WebP or PNG, by the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        picture.save(path)
    else:
        picture.save(path, quality=quality)


def save_clip(frames: list[Image.Image], path: Path, quality: int) -> None:
    """Writes an .mp4 at one frame a second, or, without a suffix, a folder of JPEG frames."""
    if path.suffix != ".mp4":
        for number, frame in enumerate(frames):
            save_picture(frame, path / f"{number:03d}.jpg", quality)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 400_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def _even(size: float) -> int:
    return max(2, round(size / 2) * 2)
