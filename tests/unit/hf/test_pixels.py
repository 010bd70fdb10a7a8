"""One rule from picture file to RGB, for training, the exported processor (by path, by PIL picture, in a chat) and generation."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps, features

from mindspeed_vita.data.media.decoder import get_decoder
from mindspeed_vita.data.media.image import picture_tiles, probe_picture
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.hf import pixels
from mindspeed_vita.hf.image_processing_long_vita import LongVitaImageProcessor
from mindspeed_vita.hf.pixels import open_picture, shown_size, to_rgb
from mindspeed_vita.hf.tiling import choose_grid, cut_tiles, normalize

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "AVIF": "avif"}


def stored(image: Image.Image, format: str = "PNG", **options: Any) -> Image.Image:
    """The picture as it comes back from a file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return open_picture(io.BytesIO(file.getvalue()))


def ink() -> Image.Image:
    """Black writing on nothing."""
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((10, 5, 29, 14), fill=(0, 0, 0, 255))
    return image


@pytest.mark.parametrize(
    "image",
    [
        stored(ink()),
        stored(ink().quantize(4)),
        stored(ink(), "WEBP", lossless=True),
        stored(ink().convert("LA")),
        stored(ink(), "TIFF"),
        stored(ink(), "GIF"),
        stored(ink().convert("L").point(lambda _: 0), transparency=0),
        ink().convert("RGBa"),
        ink().convert("LA").convert("La"),
        ink().convert("PA"),
    ],
    ids=lambda image: f"{image.format}-{image.mode}",
)
def test_dark_writing_on_nothing_is_dark_writing_on_white(image: Image.Image) -> None:
    shown = np.asarray(to_rgb(image))
    assert (shown[0, 0] == 255).all()
    if image.info.get("transparency") != 0 or image.mode != "L":
        assert (shown[10, 20] < 8).all()


def test_half_transparent_colours_are_mixed_with_white_and_opaque_ones_kept() -> None:
    half = Image.new("RGBA", (2, 1), (200, 0, 0, 128))
    assert np.abs(np.asarray(to_rgb(half))[0, 0].astype(int) - (227, 127, 127)).max() <= 1
    opaque = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8))
    opaque.putalpha(255)
    assert np.array_equal(np.asarray(to_rgb(opaque)), np.asarray(opaque)[..., :3])


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_pictures_of_plain_colours_are_as_published(mode: str) -> None:
    colours = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    image = Image.merge("LAB", colours.split()) if mode == "LAB" else colours.convert(mode)
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(to_rgb(image, "published")))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_grey_of_16_bits_is_scaled(format: str) -> None:
    grey = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    image = stored(Image.fromarray(grey), format)
    assert np.array_equal(np.asarray(to_rgb(image))[..., 1], np.arange(256).reshape(16, 16))


def test_grey_of_other_depths_is_scaled_by_its_depth() -> None:
    values = np.array([[0, 1000], [2000, 4095]], ">u2")
    twelve = open_picture(io.BytesIO(b"P5 2 2 4095\n" + values.tobytes()))
    assert np.array_equal(np.asarray(to_rgb(twelve))[..., 0], [[0, 62], [125, 255]])
    white_is_zero = Image.fromarray(np.array([[0, 65535]], np.uint16))
    assert np.asarray(to_rgb(stored(white_is_zero, "TIFF", tiffinfo={262: 0})))[0, :, 0].tolist() == [255, 0]
    assert np.asarray(to_rgb(Image.fromarray(np.array([[0, 65535]], np.uint16))))[0, :, 0].tolist() == [0, 255]


def png_of_16_bits(colour_type: int, values: list[int], transparent: list[int]) -> Image.Image:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    channels = 3 if colour_type == 2 else 1
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", len(values) // channels, 1, 16, colour_type, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" + np.array(values, ">u2").tobytes()))
    return open_picture(
        io.BytesIO(b"\x89PNG\r\n\x1a\n" + head + chunk(b"tRNS", np.array(transparent, ">u2").tobytes()) + body + chunk(b"IEND", b""))
    )


def test_one_transparent_colour_of_16_bits_is_white_or_refused() -> None:
    assert np.asarray(to_rgb(png_of_16_bits(0, [0, 1000, 40000], [1000])))[0, :, 0].tolist() == [0, 255, 156]
    with pytest.raises(ValueError, match="one of its 16-bit colours is transparent"):
        to_rgb(png_of_16_bits(2, [0, 0, 0, 1000, 1000, 1000], [1000] * 3))


@pytest.mark.parametrize(
    ("values", "format", "message"),
    [
        (np.array([[0.0, 0.5]], np.float32), "TIFF", r"its values are float \(mode F\), which have no defined black and white"),
        (np.array([[0, 70000]], np.int32), "TIFF", r"its values are 32-bit or signed \(mode I\)"),
        (np.array([[0, 70000]], np.int32), "", r"its values are 32-bit or signed \(mode I\)"),
    ],
)
def test_values_without_a_range_are_refused(tmp_path: Path, values: np.ndarray, format: str, message: str) -> None:
    image = Image.fromarray(values)
    path = tmp_path / "p.tif"
    image.save(path)
    with pytest.raises(ValueError, match=message):
        to_rgb(stored(image, format) if format else image)
    with pytest.raises(MediaError) as error:
        picture_tiles(str(path), (1, 1), tile_size=28, wanted=range(1))
    assert "cannot be read as a picture" in error.value.reason and "no defined black and white" in error.value.reason
    with pytest.raises(ValueError, match=r"picture '.*p\.tif' cannot be read: its values are"):
        LongVitaImageProcessor(tile_size=28)(str(path))
    assert np.asarray(to_rgb(image, "published")).shape == (1, 2, 3)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("format", FORMATS)
def test_every_reader_turns_a_picture_as_its_tag_says(tmp_path: Path, turn: int, format: str) -> None:
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    exif = Image.Exif()
    exif[0x0112] = turn
    image = Image.new("RGB", (56, 28), (255, 0, 0))
    image.paste((0, 0, 255), (28, 0, 56, 14))
    path = tmp_path / f"p.{FORMATS[format]}"
    image.save(path, format, exif=exif, **({"quality": 95} if format in ("JPEG", "AVIF") else {}))
    with Image.open(path) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    with open_picture(str(path)) as opened:
        assert shown_size(opened) == upright.size
        shown = to_rgb(opened)
    assert shown.size == upright.size and np.array_equal(np.asarray(shown), np.asarray(upright))
    assert probe_picture(str(path)) == upright.size
    grid = choose_grid(*upright.size, tile_size=28)
    tiles = np.zeros((3, 3, 28, 28), dtype=np.uint8)
    get_decoder(DecodeSettings()).picture(path.name, str(tmp_path), grid, range(3), tiles)
    assert np.array_equal(tiles, cut_tiles(upright, grid, tile_size=28))
    processor = LongVitaImageProcessor(tile_size=28)
    for source in (str(path), path.read_bytes(), Image.open(path), upright):
        assert np.array_equal(processor(source)["images"], normalize(tiles))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("block", [b"", b"garbage!", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\x05\0\x12\x01"])
def test_exif_that_cannot_be_read_turns_nothing(tmp_path: Path, block: bytes) -> None:
    image = Image.new("RGB", (56, 28), (255, 0, 0))
    image.save(tmp_path / "plain.jpg")
    image.save(tmp_path / "p.jpg", exif=b"Exif\0\0" + block)
    assert probe_picture(str(tmp_path / "p.jpg")) == (56, 28)
    with open_picture(str(tmp_path / "p.jpg")) as found, open_picture(str(tmp_path / "plain.jpg")) as plain:
        assert np.array_equal(np.asarray(to_rgb(found)), np.asarray(to_rgb(plain)))


def test_the_published_conversion_is_kept_by_name(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "p.png"
    ink().save(path, exif=exif)
    published = DecodeSettings(pixels="published")
    assert probe_picture(str(path), published) == (40, 20) and probe_picture(str(path)) == (20, 40)
    tiles = picture_tiles(str(path), (2, 1), tile_size=28, wanted=range(3), settings=published)
    assert np.array_equal(tiles, cut_tiles(Image.open(path).convert("RGB"), (2, 1), tile_size=28)) and not tiles.any()
    processor = LongVitaImageProcessor(tile_size=28, pixels="published")
    assert np.array_equal(processor(str(path))["images"], normalize(tiles))
    assert processor.to_dict()["pixels"] == "published"
    with pytest.raises(ValueError, match="pixels is 'x'; expected one of shown, published"):
        LongVitaImageProcessor(pixels="x")


def test_an_index_that_knows_no_turns_does_not_stretch_a_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "p.jpg", exif=exif)
    for tiling in ("dynamic", "anyres"):
        with pytest.raises(MediaError) as error:
            settings = DecodeSettings(tiling=tiling)
            picture_tiles(str(tmp_path / "p.jpg"), (2, 1), tile_size=28, wanted=range(3), settings=settings)
        assert "remove the index" in error.value.reason


def test_a_tag_after_the_pixels_is_refused_where_only_the_header_was_read(tmp_path: Path) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(file, "PNG", exif=exif)
    content = file.getvalue()
    start = content.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", content[start : start + 4])[0]
    (tmp_path / "p.png").write_bytes(content[:start] + content[end:-12] + content[start:end] + content[-12:])
    with pytest.raises(MediaError) as error:
        picture_tiles(str(tmp_path / "p.png"), (2, 1), tile_size=28, wanted=range(3))
    assert "its orientation tag stands after its pixels" in error.value.reason


@pytest.mark.parametrize("format", ["AVIF", "JPEG2000"])
def test_newer_formats_are_read_where_pillow_can(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not features.check({"AVIF": "avif", "JPEG2000": "jpg_2000"}[format]):
        pytest.skip(f"this Pillow has no {format}")
    path = tmp_path / "inside.jpg"
    Image.new("RGB", (56, 28), (30, 90, 30)).save(path, format)
    assert get_decoder(DecodeSettings()).probe_picture(path.name, str(tmp_path)) == (56, 28)
    assert np.abs(np.asarray(to_rgb(open_picture(str(path))))[5, 5].astype(int) - (30, 90, 30)).max() <= 3
    monkeypatch.setattr(pixels, "PICTURE_FORMATS", ("JPEG",))
    monkeypatch.setattr(pixels.features, "check", lambda name: False)
    with pytest.raises(ValueError, match=r"it is (AVIF|JPEG 2000): format not supported by Pillow"):
        open_picture(str(path))


@pytest.mark.parametrize(("head", "name"), [(b"\0\0\0\x18ftypheic", "HEIC"), (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL")])
def test_formats_that_pillow_never_reads_are_named(tmp_path: Path, head: bytes, name: str) -> None:
    (tmp_path / "p.jpg").write_bytes(head.ljust(64, b"\0"))
    with pytest.raises(MediaError) as error:
        probe_picture(str(tmp_path / "p.jpg"))
    assert f"it is {name}: format not supported" in error.value.reason
