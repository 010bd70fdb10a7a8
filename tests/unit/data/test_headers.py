"""Media headers are read in the decoder process: what they cost is bounded, and no row is a reason to stop."""

import os
from contextlib import closing

import pytest
from PIL import Image

from mindspeed_vita.data import measure
from mindspeed_vita.data.at_work import AtWork
from mindspeed_vita.data.media.decoder import Decoder, Job
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.media.paths import MediaError


@pytest.fixture
def rows(say):
    return lambda *paths, kind="image": [
        {"messages": say(f"<{kind}>?", "A."), f"{kind}s": [path]} for path in paths
    ] + [{"messages": say("A?", "B.")}]


def test_nothing_of_a_picture_or_a_folder_is_read_in_the_indexing_process(world, rows, picture, monkeypatch, say):
    picture(60, 30).save(world.folder / "p.png")
    (world.folder / "frames").mkdir()
    picture(60, 30).save(world.folder / "frames" / "1.png")

    def refuse(*_, **__):
        raise AssertionError("read in this process")

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(os, "walk", refuse)
    data = world.build([*rows("p.png"), *rows("frames", kind="video")])
    assert not data.skipped and data.index.grids(0) == [(2, 1)]


def test_a_header_that_takes_the_memory_is_refused_by_the_limit(world, rows):
    """A sparse file that calls itself a WebP of 3 GiB: Pillow reads it whole to find its size."""
    with open(world.folder / "huge.webp", "wb") as file:
        file.write(b"RIFF" + ((3 << 30) - 8).to_bytes(4, "little") + b"WEBPVP8 ")
        file.truncate(3 << 30)
    data = world.build(rows("huge.webp"), decode_memory=300 << 20)
    assert len(data.skipped) == 1 and "huge.webp" in data.skipped[0].reason and data.skipped[0].media_at_fault
    assert "memory" in data.skipped[0].reason.lower()


def test_a_folder_that_takes_long_to_walk_costs_its_sample(world, rows):
    (world.folder / "data").mkdir()
    data = world.build(rows(".", kind="video"), max_video_frames=10)
    assert [item.where.rpartition(":")[2] for item in data.skipped] == ["1"]


def test_half_characters_in_paths_skip_their_rows(world, rows):
    data = world.build(rows("\ud800.png", "a\udfff/\udc80.png"))
    assert [item.reason for item in data.skipped] == ["\\ud800.png: is no path", "a\\udfff/\\udc80.png: is no path"]


def test_a_path_with_half_a_character_is_noted_by_a_loader_process(world, rows, picture, monkeypatch):
    monkeypatch.setattr("mindspeed_vita.data.at_work._own", [])
    places = AtWork(1)
    places.take(0)
    data = world.build(rows("\ud800.png"))
    assert [item.reason for item in data.skipped] == ["\\ud800.png: is no path"]
    assert places.of(0) == "\\ud800.png"


def test_an_error_between_two_answers_does_not_shift_the_next_ones(world, picture, monkeypatch):
    """The child has answers of the interrupted call left. They are not taken for those of the next call."""
    for number in range(4):
        picture(20 + number, 30).save(world.folder / f"{number}.png")
    jobs = [Job.header(f"{number}.png", str(world.folder), False) for number in range(4)]
    noted: list[str] = []

    def fails_once(path):
        noted.append(path)
        if len(noted) == 2:
            raise RuntimeError("stopped here")

    monkeypatch.setattr("mindspeed_vita.data.media.decoder.note", fails_once)
    with closing(Decoder(DecodeSettings())) as decoder:
        with pytest.raises(RuntimeError, match="stopped here"):
            decoder.headers(jobs)
        assert decoder.headers(jobs[2:]) == [(22, 30), (23, 30)]


def test_a_picture_that_many_samples_name_is_looked_at_once(world, rows, picture, monkeypatch):
    picture(60, 30).save(world.folder / "p.png")
    asked = []
    original = Decoder.headers
    monkeypatch.setattr(Decoder, "headers", lambda self, jobs: asked.extend(jobs) or original(self, jobs))
    assert not world.build(rows(*["p.png"] * 50)).skipped and len(asked) == 1


def test_more_media_than_any_pack_holds_are_not_looked_at(world, say, monkeypatch):
    monkeypatch.setattr(Decoder, "headers", lambda self, jobs: pytest.fail("looked at"))
    many = measure.MOST_MEDIA + 1
    row = {"messages": say("<image>" * many, "A."), "images": [f"{number}.png" for number in range(many)]}
    data = world.build([row, {"messages": say("A?", "B.")}])
    assert data.skipped[0].reason == "found 16,385 images; a sample may have 16,384, and no pack holds more"
    assert not data.skipped[0].media_at_fault and data.skipped[0].at_fault


def test_max_pixels_may_exceed_the_limit_of_pillow(tmp_path, monkeypatch):
    Image.new("1", (14_000, 14_000)).save(tmp_path / "large.png")  # 196 million pixels, Pillow refuses 179 million
    decoders = [Decoder(DecodeSettings(max_pixels=limit)) for limit in (200_000_000, 150_000_000)]
    try:
        assert decoders[0].probe_picture("large.png", str(tmp_path)) == (14_000, 14_000)
        with pytest.raises(MediaError) as error:
            decoders[1].probe_picture("large.png", str(tmp_path))
        assert error.value.reason == "has 14000x14000 pixels, data.max_pixels allows 150,000,000"
    finally:
        for decoder in decoders:
            decoder.close()
