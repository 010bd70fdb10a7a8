"""Decoding in a child process: what hangs, crashes or bombs costs one file, and the next one decodes as if nothing had happened."""

import fcntl
import os
import resource
import signal
import struct
import subprocess
import zlib

import numpy as np
import pytest

from mindspeed_vita.data.media import decoder as decoder_module
from mindspeed_vita.data.media import readers
from mindspeed_vita.data.media.decoder import Decoder, Job, close_decoders, get_decoder
from mindspeed_vita.data.media.image import picture_tiles
from mindspeed_vita.data.media.limits import DecodeSettings
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.data.media.video import VideoHeader, probe_video, video_tiles
from tests.hung_decoder import hang, stop


@pytest.fixture
def root(tmp_path, picture, clip):
    picture(60, 30).save(tmp_path / "good.png")
    clip(tmp_path / "good.mp4", 30, 10)
    return tmp_path


@pytest.fixture
def decoder():
    made = []

    def make(**settings):
        made.append(Decoder(DecodeSettings(**settings)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def take(decoder, root, path="good.png"):
    tiles = np.zeros((3, 3, 28, 28), dtype=np.uint8)
    decoder.picture(path, str(root), (2, 1), range(3), tiles)
    return tiles


def refusal(decoder, root, path="good.png"):
    with pytest.raises(MediaError) as error:
        take(decoder, root, path)
    return error.value.reason


def expected(root):
    return picture_tiles(str(root / "good.png"), (2, 1), tile_size=28, wanted=range(3))


def test_the_child_gives_the_tiles_that_this_process_would(root, decoder):
    child = decoder()
    assert np.array_equal(take(child, root), expected(root))
    header = child.probe_video("good.mp4", str(root))
    assert header == probe_video(str(root / "good.mp4"))
    frames = np.zeros((3, 3, 28, 28), dtype=np.uint8)
    child.video("good.mp4", str(root), header, [0, 10, 20], frames)
    assert np.array_equal(frames, video_tiles(str(root / "good.mp4"), header, [0, 10, 20], tile_size=28, root=str(root)))


def crash(child, number, times=2):
    """The process ends by a signal as soon as its next request is written, and so does the next one, as often as is said."""
    start, send = child._start, child._send

    def stopped():
        process = start()
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        child._start, child._send = start, sent
        return process

    def sent(process, *rest):
        nonlocal times
        times -= 1
        child._start, child._send = stopped if times else start, send
        count = send(process, *rest)
        os.kill(process.pid, number)
        os.kill(process.pid, signal.SIGCONT)
        return count

    child._start = stopped


def test_a_hang_costs_one_file_and_its_deadline(root, decoder):
    child = decoder(seconds=30.0)
    take(child, root)
    hang(child)
    hung = child.pid
    assert "took longer than 1 seconds" in refusal(child, root)
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)
    assert np.array_equal(take(child, root), expected(root))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_by_signal_costs_one_file(root, decoder, number):
    child = decoder()
    take(child, root)
    crash(child, number)
    assert refusal(child, root) == f"the decoder was ended by {number.name} while decoding it, twice"
    assert np.array_equal(take(child, root), expected(root))


def test_a_decoder_that_something_else_kills_costs_no_file(root, decoder):
    child = decoder()
    take(child, root)
    crash(child, signal.SIGKILL, times=1)
    assert np.array_equal(take(child, root), expected(root))
    crash(child, signal.SIGKILL, times=1)
    tiles = np.zeros((4, 3, 3, 28, 28), dtype=np.uint8)
    jobs = [Job.picture("good.png", str(root), (2, 1), range(3), into) for into in tiles]
    assert child.run(jobs) == [None] * 4
    assert all(np.array_equal(into, expected(root)) for into in tiles), "those that waited in the pipe too"


def test_descriptors_above_1023_are_waited_for_too(root, decoder):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1300:
        pytest.skip(f"this process may open {hard} files, the test needs 1,300")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1300), hard))
    held = []
    try:
        while not held or held[-1] < 1024:
            held.append(os.open(os.devnull, os.O_RDONLY))
        child = decoder()
        assert np.array_equal(take(child, root), expected(root))
        assert child._child.stdout.fileno() > 1023
    finally:
        for number in held:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_of_several_jobs_a_crash_and_a_hang_cost_one_each(root, decoder):
    child = decoder(seconds=30.0)
    take(child, root)
    tiles = np.zeros((5, 3, 3, 28, 28), dtype=np.uint8)
    names = ["good.png", "gone.png", "good.png", "good.png", "good.png"]
    jobs = [Job.picture(name, str(root), (2, 1), range(3), into) for name, into in zip(names, tiles)]
    crash(child, signal.SIGKILL)
    reasons = [error and error.reason for error in child.run(jobs)]
    assert "SIGKILL" in reasons[0] and "no such file" in reasons[1] and reasons[2:] == [None] * 3
    hang(child)
    reasons = [error and error.reason for error in child.run(jobs)]
    assert "took longer" in reasons[0] and "no such file" in reasons[1] and reasons[2:] == [None] * 3
    assert all(np.array_equal(into, expected(root)) for into in tiles[2:])


def test_more_jobs_than_the_pipe_holds(root, decoder):
    tiles = np.zeros((600, 3, 3, 28, 28), dtype=np.uint8)
    assert not any(decoder().run([Job.picture("good.png", str(root), (2, 1), range(3), into) for into in tiles]))
    assert np.array_equal(tiles[599], expected(root))
    header = probe_video(str(root / "good.mp4"))
    many = np.zeros((4000, 3, 8, 8), dtype=np.uint8)
    jobs = [Job.video("good.mp4", str(root), header, [number * 30 // 4000 for number in range(4000)], many)]
    assert not any(decoder().run(jobs * 2)), "requests of more bytes than a pipe has"


def test_a_pipe_of_one_page_is_never_waited_for(root, decoder, monkeypatch):
    """Jobs whose tiles fill their pipe, and requests that would fill theirs many times if as many were sent ahead as usual."""
    child = decoder(seconds=30.0)
    popen = subprocess.Popen

    def start(*arguments, **options):
        process = popen(*arguments, **options)
        assert fcntl.fcntl(process.stdin.fileno(), decoder_module._SET_PIPE_SIZE, 4096) == 4096
        return process

    monkeypatch.setattr(decoder_module.subprocess, "Popen", start)
    tiles = np.zeros((400, 3, 3, 28, 28), dtype=np.uint8)
    assert not any(child.run([Job.picture("good.png", str(root), (2, 1), range(3), into) for into in tiles]))
    assert child._ahead == 1024 and np.array_equal(tiles[399], expected(root))


def test_writing_a_request_ends_at_the_deadline_too(root, decoder):
    child = decoder(seconds=30.0)
    take(child, root)
    hang(child)
    (error,) = child.run([Job({"kind": "probe_picture", "path": "p" * 200_000, "root": str(root)}, None)])
    assert "took longer than 1 seconds" in error.reason


def test_a_video_has_more_time_for_each_frame(root, decoder):
    child = decoder(seconds=30.0)
    header = child.probe_video("good.mp4", str(root))
    hang(child, seconds=0.5)
    with pytest.raises(MediaError, match="took longer than 1.5 seconds"):
        child.video("good.mp4", str(root), header, [0, 1, 2, 3], np.zeros((4, 3, 28, 28), dtype=np.uint8))
    assert DecodeSettings().deadline(4096) == 60 + 1024 and DecodeSettings().deadline(0) == 60


def test_a_child_that_does_not_end_is_left_behind(root, decoder, monkeypatch):
    child = decoder()
    take(child, root)
    stop(child)
    process = child._child
    monkeypatch.setattr(decoder_module, "_CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(process, "kill", lambda: None)  # as in an uninterruptible read
    child.close()
    assert process.poll() is None and child.pid is None
    assert np.array_equal(take(child, root), expected(root))
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def bomb(path, side):
    """A PNG of side x side black pixels, a thousandth of its size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side * 3 + 1)) for _ in range(side)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def test_a_bomb_is_refused_by_its_header_or_stopped_by_the_memory_limit(root, decoder):
    bomb(root / "bomb.png", 8_000)
    assert (root / "bomb.png").stat().st_size < 1 << 20
    capped = decoder(max_pixels=10_000_000)
    assert refusal(capped, root, "bomb.png") == "has 8000x8000 pixels, data.max_pixels allows 10,000,000"
    small = decoder(memory=160 << 20)
    assert "data.decode_memory" in refusal(small, root, "bomb.png") or "MemoryError" in refusal(small, root, "bomb.png")
    assert np.array_equal(take(small, root), expected(root))


def test_caps_on_bytes_frames_and_seconds(root, decoder):
    assert "bytes, data.max_media_bytes allows 10" in refusal(decoder(max_bytes=10), root)
    for settings, text in (
        ({"max_video_frames": 29}, "has 30 frames, data.max_video_frames allows 29"),
        ({"max_video_seconds": 2.5}, "lasts 3 seconds, data.max_video_seconds allows 2"),
    ):
        with pytest.raises(MediaError, match=text):
            decoder(**settings).probe_video("good.mp4", str(root))


def test_pipes_and_devices_are_no_media(root, decoder):
    os.mkfifo(root / "pipe.png")
    assert refusal(decoder(), root, "pipe.png") == "is no regular file"


def test_paths_stay_inside_the_root_in_the_child_too(root, decoder, tmp_path_factory, picture):
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    picture(20, 20).save(outside)
    (root / "link.png").symlink_to(outside)
    for path in ("link.png", str(outside), f"../{outside.parent.name}/secret.png"):
        assert "outside the media root" in refusal(decoder(), root, path)


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}/x.png", "https://127.0.0.1:{port}/x.mp4"])
def test_an_address_is_a_path_that_is_not_there(root, decoder, address):
    assert "no such file" in refusal(decoder(), root, address.format(port=9))


def test_a_playlist_reaches_no_network(root):
    """FFmpeg would follow an address inside a file; the decoder must not. A socket that listens sees no connection."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        (root / "list.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{address}\n#EXT-X-ENDLIST\n")
        (root / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {address}\n")
        for name in ("list.mp4", "concat.mp4"):
            with pytest.raises(MediaError):
                probe_video(str(root / name))
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_forked_process_gets_its_own_child(root):
    close_decoders()
    settings = DecodeSettings()
    take(get_decoder(settings), root)
    mine = get_decoder(settings).pid
    read, write = os.pipe()
    if os.fork() == 0:
        take(get_decoder(settings), root)
        os.write(write, str(get_decoder(settings).pid).encode())
        get_decoder(settings).close()
        os._exit(0)
    os.wait()
    assert int(os.read(read, 20)) != mine == get_decoder(settings).pid
    assert np.array_equal(take(get_decoder(settings), root), expected(root))
    close_decoders()


@pytest.mark.parametrize("reader", ["decord", "torchcodec"])
def test_every_reader_gives_the_same_frames(root, reader):
    pytest.importorskip(reader, reason=f"{reader} is not installed", exc_type=Exception)
    path, numbers = str(root / "good.mp4"), [0, 7, 15, 29, 40]
    found = [np.asarray(image) for image in readers.read_frames(path, numbers, reader=reader)]
    for one, other in zip(found, readers.read_frames(path, numbers, reader="pyav"), strict=True):
        assert np.array_equal(one, np.asarray(other))


def test_scaling_inside_the_decoder_gives_nearly_the_same_tiles(root):
    path, header = str(root / "good.mp4"), VideoHeader(False, 30, 10.0)
    plain, scaled = (
        video_tiles(path, header, [0, 14, 29], tile_size=28, root=str(root), settings=DecodeSettings(scale_in_decoder=flag))
        for flag in (False, True)
    )
    assert plain.shape == scaled.shape
    assert np.abs(plain[:, :, 8:20].astype(int) - scaled[:, :, 8:20]).max() <= 3, "grey frames: only the padding's edge may differ more"


def test_the_fast_resize_is_at_most_two_levels_off(root, picture):
    exact = expected(root)
    fast = picture_tiles(str(root / "good.png"), (2, 1), tile_size=28, wanted=range(3), settings=DecodeSettings(resize="fast"))
    assert np.abs(exact.astype(int) - fast).max() <= 2 and not np.array_equal(exact, np.zeros_like(exact))
