"""What may be opened: the containers and picture formats that are listed, told by content; playlists and programs never."""

import numpy as np
import pytest
from PIL import Image, features

from mindspeed_vita.data.media.decoder import get_decoder
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.data.media.video import VideoHeader, probe_video, video_tiles
from mindspeed_vita.hf.image_processing_long_vita import open_image


def write_video(path, codec, pixels="yuv420p"):
    import av

    if codec not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {codec}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        for number in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * number, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("reader", ["pyav", "decord", "torchcodec"])
@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "concat.mp4"])
def test_a_playlist_does_not_leave_the_root(tmp_path, reader, name):
    """Local files outside the root that a file inside it names, with readers that would open them."""
    if reader != "pyav":
        pytest.importorskip(reader, reason=f"{reader} is not installed", exc_type=Exception)
    media, secret = tmp_path / "media", tmp_path / "outside" / "secret.ts"
    media.mkdir()
    secret.parent.mkdir()
    write_video(secret, "mpeg2video")
    assert probe_video(str(secret)).num_frames == 10
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.4,\n../outside/secret.ts\n#EXT-X-ENDLIST\n"
    (media / name).write_text("ffconcat version 1.0\nfile outside/secret.ts\n" if name == "concat.mp4" else playlist)
    with pytest.raises(MediaError, match="cannot be read as a video"):
        probe_video(name, str(media))
    header, settings = VideoHeader(False, 10, 25.0), DecodeSettings(reader=reader)
    with pytest.raises(MediaError, match="cannot be decoded"):
        video_tiles(str(media / name), header, [0], tile_size=28, root=str(media), settings=settings)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        *[("mp4", "mpeg4"), ("mov", "mpeg4"), ("m4v", "mpeg4"), ("3gp", "mpeg4"), ("mkv", "mpeg4"), ("webm", "libvpx"), ("avi", "mpeg4")],
        *[("mpg", "mpeg1video"), ("vob", "mpeg2video"), ("ts", "mpeg2video"), ("flv", "flv"), ("ogv", "libtheora"), ("wmv", "wmv2")],
        ("gif", "gif"),
    ],
)
def test_every_container_opens(tmp_path, suffix, codec):
    path = str(tmp_path / f"clip.{suffix}")
    write_video(path, codec, "rgb8" if codec == "gif" else "yuv420p")
    header = probe_video(path)
    assert header.num_frames == 10
    tiles = video_tiles(path, header, [0, 5, 9], tile_size=28, root=str(tmp_path))
    assert tiles[0].mean() < tiles[1].mean() < tiles[2].mean()


def test_a_picture_is_opened_as_one_of_the_usual_formats_only(tmp_path, picture):
    """An EPS is a program: Pillow would hand it to Ghostscript, whatever it is called."""
    root, child, image = tmp_path, get_decoder(DecodeSettings()), picture(60, 30)
    image.save(root / "eps.jpg", format="EPS")
    assert Image.open(root / "eps.jpg").format == "EPS"
    tiles = np.zeros((3, 3, 28, 28), dtype=np.uint8)
    with pytest.raises(MediaError, match="cannot be read as a picture .UnidentifiedImageError"):
        child.picture("eps.jpg", str(root), (2, 1), range(3), tiles)
    with pytest.raises(MediaError, match="cannot be read as a picture"):
        child.probe_picture("eps.jpg", str(root))
    with pytest.raises(ValueError, match="cannot be read"):
        open_image(str(root / "eps.jpg"))
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *(["JPEG2000"] if features.check("jpg_2000") else [])):
        image.save(root / f"picture.{name}", format=name)
        assert child.probe_picture(f"picture.{name}", str(root)) == (60, 30)
        assert open_image(root / f"picture.{name}").size == (60, 30)
        child.picture(f"picture.{name}", str(root), (2, 1), range(3), tiles)
