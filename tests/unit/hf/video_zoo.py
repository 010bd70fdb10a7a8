"""Video files of many kinds, made by the ffmpeg program, and its own word on which frame comes when.

Every frame carries its number as eight black or white bars, so that what is compared is which frame it is and not its pixels. The zoo
needs ffmpeg on PATH and shares no code with the package.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, RATE, COUNT = 64, 48, 10, 90
TARGETS = (".mp4", ".mkv", ".mov", ".ts")

ENCODED = {
    "h264.mp4": "-c:v libx264 -g 30 -bf 3 -qp 4",
    "h264_no_b.mp4": "-c:v libx264 -g 30 -bf 0 -qp 4",
    "h264_faststart.mp4": "-c:v libx264 -g 12 -qp 4 -movflags +faststart",
    "h264_fragmented.mp4": "-c:v libx264 -g 12 -qp 4 -movflags frag_keyframe+empty_moov",
    "h265.mp4": "-c:v libx265 -x265-params log-level=none:keyint=30:qp=4",
    "h265_open.mkv": "-c:v libx265 -x265-params log-level=none:keyint=30:qp=4:open-gop=1",
    "mpeg4.mp4": "-c:v mpeg4 -q:v 2 -bf 2",
    "mpeg2.mp4": "-c:v mpeg2video -q:v 2 -bf 2 -r 25",
    "mjpeg.mov": "-c:v mjpeg -q:v 2",
    "prores.mov": "-c:v prores_ks",
    "png.mov": "-c:v png",
    "h264.mov": "-c:v libx264 -bf 3 -qp 4",
    "h264.m4v": "-c:v libx264 -bf 2 -qp 4",
    "h263.3gp": "-c:v h263 -s 176x144 -q:v 2",
    "h264.mkv": "-c:v libx264 -g 30 -bf 3 -qp 4",
    "ffv1.mkv": "-c:v ffv1",
    "mpeg2.mkv": "-c:v mpeg2video -q:v 2 -bf 2 -r 25",
    "mjpeg.mkv": "-c:v mjpeg -q:v 2",
    "vp8.webm": "-c:v libvpx -b:v 2M -deadline realtime",
    "vp9.webm": "-c:v libvpx-vp9 -b:v 2M -deadline realtime -cpu-used 8",
    "mjpeg.avi": "-c:v mjpeg -q:v 2",
    "mpeg4.avi": "-c:v mpeg4 -q:v 2",
    "mpeg4_b.avi": "-c:v mpeg4 -q:v 2 -bf 2",
    "h264.avi": "-c:v libx264 -bf 3 -qp 4",
    "msmpeg4.avi": "-c:v msmpeg4 -q:v 2",
    "huffyuv.avi": "-c:v huffyuv",
    "raw.avi": "-c:v rawvideo",
    "h264.ts": "-c:v libx264 -g 30 -bf 3 -qp 4",
    "mpeg2.ts": "-c:v mpeg2video -q:v 2 -bf 2 -r 25",
    "mpeg1.mpg": "-c:v mpeg1video -q:v 2 -r 25",
    "mpeg2.vob": "-c:v mpeg2video -q:v 2 -bf 2 -r 25",
    "flv1.flv": "-c:v flv -q:v 2",
    "h264.flv": "-c:v libx264 -bf 2 -qp 4",
    "theora.ogv": "-c:v libtheora -q:v 10",
    "wmv2.wmv": "-c:v wmv2 -q:v 2",
    "picture.gif": "-f gif",
    "ntsc.mp4": "-c:v libx264 -qp 4 -r 30000/1001",
    "fast.mkv": "-c:v libx264 -qp 4 -r 60",
    "one_frame.mp4": "-c:v libx264 -qp 4 -frames:v 1",
    "gaps.mkv": "-c:v mjpeg -q:v 2 -vf select='lt(n\\,20)+not(mod(n\\,13))' -fps_mode vfr",
    "gaps.mp4": "-c:v libx264 -qp 4 -vf select='lt(n\\,20)+not(mod(n\\,13))' -fps_mode vfr",
    "gaps.ts": "-c:v libx264 -qp 4 -vf select='lt(n\\,20)+not(mod(n\\,13))' -fps_mode vfr",
    "dropped_mjpeg.avi": "-c:v mjpeg -q:v 2 -vf select='lt(n\\,20)+not(mod(n\\,13))' -fps_mode vfr",
    "dropped_mpeg4.avi": "-c:v mpeg4 -q:v 2 -vf select='lt(n\\,20)+not(mod(n\\,13))' -fps_mode vfr",
    "every_second.avi": "-c:v mjpeg -q:v 2 -vf select='not(mod(n\\,2))' -fps_mode vfr",
}
"""Name of a file -> how its frames are encoded."""


@dataclass(frozen=True)
class Animal:
    """One file of the zoo."""

    path: Path
    breaks_off: bool = False
    """The file ends early: a frame that is not there shows the one before it."""


def ffmpeg(*words: object) -> None:
    """Runs the program; its output is shown where it fails."""
    subprocess.run(["ffmpeg", "-v", "error", "-nostdin", "-y", *map(str, words)], check=True, capture_output=True)


def bars(number: int) -> np.ndarray:
    """A frame that says its number: uint8[HEIGHT, WIDTH]."""
    bits = [(number >> place) & 1 for place in range(8)]
    return np.repeat(np.array(bits, np.uint8) * 200 + 25, WIDTH // 8)[None].repeat(HEIGHT, 0)


def number_of(picture: np.ndarray) -> int:
    """The number that a grey picture of any size says."""
    columns = picture.astype(np.float64).mean(0)
    width = len(columns) // 8
    return sum(int(columns[place * width + width // 4 : (place + 1) * width - width // 4].mean() > 125) << place for place in range(8))


def shown_by_ffmpeg(path: Path) -> list[int]:
    """Numbers of the frames that `ffmpeg` shows of a file, in order; of AVI at every tick, as an empty tick shows the frame before."""
    words = ["ffmpeg", "-v", "quiet", "-nostdin", "-i", str(path), "-map", "0:V:0", "-fps_mode", "passthrough", "-s", f"{WIDTH}x{HEIGHT}"]
    done = subprocess.run([*words, "-f", "rawvideo", "-pix_fmt", "gray", "-"], capture_output=True)
    shown = [number_of(frame) for frame in np.frombuffer(done.stdout, np.uint8).reshape(-1, HEIGHT, WIDTH)]
    if path.suffix != ".avi":
        return shown
    words = ["ffprobe", "-v", "quiet", "-select_streams", "V:0", "-show_entries", "frame=best_effort_timestamp", "-of", "csv=p=0"]
    listed = subprocess.run([*words, str(path)], capture_output=True, text=True, check=True).stdout.split()
    ticks = [int(line.strip(",")) for line in listed if line[0].isdigit()]
    if len(ticks) != len(shown):  # not every frame has a tick of its own, so none was dropped
        return shown
    return [number for number, tick, following in zip(shown, ticks, [*ticks[1:], ticks[-1] + 1]) for _ in range(following - tick)]


def build(folder: Path) -> dict[str, Animal]:
    """Makes every file. Takes some seconds."""
    raw = folder / "frames.raw"
    raw.write_bytes(b"".join(bars(number).tobytes() for number in range(COUNT)))
    source = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{WIDTH}x{HEIGHT}", "-r", RATE, "-i", raw]
    made: dict[str, Animal] = {}
    for name, options in ENCODED.items():
        pixels = "rgb24" if name.startswith(("png", "picture")) else "yuv422p10le" if name.startswith("prores") else "yuv420p"
        pixels = "yuvj420p" if "-c:v mjpeg" in options else pixels
        shape = ["-pix_fmt", pixels] if name != "picture.gif" else []
        ffmpeg(*source, *options.replace("'", "").split(), *shape, folder / name)
        made[name] = Animal(folder / name)
    makers: list[Callable[[Path, dict[str, Animal]], None]] = [_cuts, _companions, _damage]
    for make in makers:
        make(folder, made)
    return made


def _cuts(folder: Path, made: dict[str, Animal]) -> None:
    """Clips cut without encoding, at and between key frames, where groups of pictures are closed and where they are open."""
    ffmpeg("-i", folder / "h264.mkv", "-c:v", "libx264", "-g", 30, "-bf", 3, "-qp", 4, "-x264-params", "open-gop=1:scenecut=0",
           folder / "open.mp4")  # fmt: skip
    made["open.mp4"] = Animal(folder / "open.mp4")
    for source in ("h264.mp4", "open.mp4", "h265_open.mkv", "mpeg4.mp4", "vp9.webm"):
        for target in TARGETS:
            if target == ".ts" and source in ("vp9.webm", "mpeg4.mp4") or (source, target) == ("vp9.webm", ".mov"):
                continue  # a container that does not take the codec, or without the header that decoding needs
            for start in ("0.35", "3.05"):
                name = f"cut_{source.replace('.', '_')}_{start}{target}"
                ffmpeg("-ss", start, "-i", folder / source, "-t", 4, "-c", "copy", folder / name)
                made[name] = Animal(folder / name)


def _companions(folder: Path, made: dict[str, Animal]) -> None:
    """Films with sound, and with a cover picture that is listed first."""
    cover = folder / "cover.png"
    ffmpeg("-f", "lavfi", "-i", "color=red:s=64x48", "-frames:v", 1, cover)
    for suffix, sound in ((".mp4", "aac"), (".mkv", "flac"), (".ts", "mp2"), (".avi", "mp2")):
        video = folder / ("mpeg4.avi" if suffix == ".avi" else "h264.mp4")
        name = f"sound{suffix}"
        ffmpeg("-i", video, "-f", "lavfi", "-i", "sine=d=9", "-c:v", "copy", "-c:a", sound, "-shortest", folder / name)
        made[name] = Animal(folder / name)
    for suffix in (".mp4", ".mov"):
        name = f"cover_first{suffix}"
        ffmpeg("-i", folder / "h264.mp4", "-i", cover, "-map", 1, "-map", 0, "-c:v:0", "png", "-c:v:1", "copy",
               "-disposition:v:0", "attached_pic", folder / name)  # fmt: skip
        made[name] = Animal(folder / name)
    ffmpeg("-i", folder / "h264.mp4", "-attach", cover, "-metadata:s:t", "mimetype=image/png", "-c", "copy", folder / "cover.mkv")
    made["cover.mkv"] = Animal(folder / "cover.mkv")


def _damage(folder: Path, made: dict[str, Animal]) -> None:
    """Files that break off, files with a header that lies, and files with a hole."""
    for name in ("h264_faststart.mp4", "h264.mkv", "h264.ts", "mpeg4.avi", "flv1.flv", "mpeg1.mpg"):
        content = (folder / name).read_bytes()
        half = folder / f"half_{name}"
        half.write_bytes(content[: len(content) * 2 // 3])
        made[half.name] = Animal(half, breaks_off=True)
    content = bytearray((folder / "mjpeg.avi").read_bytes())
    place = content.index(b"strh") + 8 + 32  # dwLength of the stream's header
    content[place : place + 4] = (100_000).to_bytes(4, "little")
    (folder / "lying.avi").write_bytes(content)
    made["lying.avi"] = Animal(folder / "lying.avi")
