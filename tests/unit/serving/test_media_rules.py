"""Media of a request: bytes it carries, files below the root and nothing else, and what every refusal says."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import BinaryIO, Optional

import pytest

from mindspeed_vita.data.media.paths import frames_reference
from mindspeed_vita.serving.conversation import RequestLimits, conversation
from mindspeed_vita.serving.errors import ApiError
from mindspeed_vita.serving.media_rules import MediaRefused, MediaRules
from mindspeed_vita.serving.schema import ChatMessage

PICTURE = b"not decoded here"


def data_url(content: bytes = PICTURE, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "media"
    (root / "sub dir").mkdir(parents=True)
    (root / "sub dir" / "a.png").write_bytes(PICTURE)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "request"
    folder.mkdir()
    return folder


def test_carried_bytes_are_written_as_they_are(folder: Path):
    path = MediaRules().path_of(data_url(), "image", folder, 1)
    assert Path(path).parent == folder and Path(path).read_bytes() == PICTURE
    video = MediaRules().path_of(data_url(kind="video/mp4;codecs=avc1"), "video", folder, 2)
    assert Path(video).read_bytes() == PICTURE and video != path


@pytest.mark.parametrize(
    "url, message",
    [
        ("data:image/png,plain", "expected data:image/...;base64,"),
        ("data:", "expected data:image/...;base64,"),
        ("data:video/mp4;base64,AAAA", "holds video; expected image"),
        ("data:image/png;base64,A*==", "is no base64"),
        ("data:image/png;base64,AAA", "is no base64"),
        ("data:image/png;base64,ÄÄÄÄ", "is no base64"),
        ("data:image/png;base64,", "has 0 bytes"),
        (data_url(b"x" * 21), "has 21 bytes; expected from 1 to 20"),
        (data_url(b"x" * 500), "has 500 bytes; expected from 1 to 20"),
        ("http://example.com/a.png", "this server fetches nothing"),
        ("file:///etc/passwd", "reads no files"),
        ("/etc/passwd", "reads no files"),
        ("ftp://example.com/a", "reads no files"),
    ],
)
def test_what_is_not_allowed_is_refused_and_nothing_is_written(url: str, message: str, folder: Path):
    with pytest.raises(MediaRefused, match="image 1: ") as caught:
        MediaRules(max_bytes=20).path_of(url, "image", folder, 1)
    assert message in str(caught.value)
    assert not list(folder.iterdir())


def test_files_below_the_root_are_named_in_three_ways(root: Path, folder: Path):
    rules, expected = MediaRules(root=root), str((root / "sub dir" / "a.png").resolve())
    for url in ("sub dir/a.png", expected, f"file://{root}/sub%20dir/a.png", f"file://localhost{root}/sub dir/a.png"):
        assert rules.path_of(url, "image", folder, 1) == expected


def test_a_file_below_the_root_may_be_no_larger_than_what_is_carried(root: Path, folder: Path):
    assert MediaRules(root=root, max_bytes=len(PICTURE)).path_of("sub dir/a.png", "image", folder, 1)
    with pytest.raises(MediaRefused, match="image 1: has 16 bytes, the server allows 15"):
        MediaRules(root=root, max_bytes=len(PICTURE) - 1).path_of("sub dir/a.png", "image", folder, 1)


def test_nothing_outside_the_root_is_told_from_what_does_not_exist(root: Path, folder: Path):
    outside = root.parent / "secret.png"
    for url in (
        *("../secret.png", str(outside), f"file://{outside}", f"file://{root}/%2e%2e/secret.png", "link.png", "sub dir/../../secret.png"),
        *("none.png", "sub dir", "", "a\0b", "/etc/passwd", "/proc/self/environ", "gopher://host/x"),
    ):
        with pytest.raises(MediaRefused) as caught:
            MediaRules(root=root).path_of(url, "image", folder, 1)
        shown = url if len(url) <= 60 else f"{url[:60]}..."
        assert str(caught.value) == f"image 1: {shown!r} is no file below the server's media root"


def test_references_of_training_data_are_no_paths(root: Path, folder: Path):
    for url in (frames_reference([str(root.parent / "secret.png")]), f"{root.parent}/shard.tar!/0+10/a.png"):
        with pytest.raises(MediaRefused, match="is no path of a file"):
            MediaRules(root=root).path_of(url, "video", folder, 1)


def test_a_file_of_another_machine_is_refused(root: Path, folder: Path):
    with pytest.raises(MediaRefused, match="another machine"):
        MediaRules(root=root).path_of(f"file://host{root}/sub dir/a.png", "image", folder, 1)


def test_a_long_url_is_not_repeated_whole(root: Path, folder: Path):
    with pytest.raises(MediaRefused) as caught:
        MediaRules(root=root).path_of("x" * 10_000, "image", folder, 1)
    assert len(str(caught.value)) < 200


# Conversations


def message(role: str, *parts: str) -> ChatMessage:
    """Texts, and data: URLs as parts of their kind."""
    content = []
    for part in parts:
        kind = part[5:10] if part.startswith("data:") else "text"
        content.append({"type": "text", "text": part} if kind == "text" else {"type": f"{kind}_url", f"{kind}_url": {"url": part}})
    return ChatMessage.model_validate({"role": role, "content": content})


def test_a_conversation_is_text_with_tags_as_the_processor_writes_them(folder: Path):
    from mindspeed_vita.hf.chat_template import CHAT_TEMPLATE

    first, film = data_url(b"1"), data_url(b"2", "video/mp4")
    messages = [
        message("developer", "Be short."),
        message("user", first, "What is it?", film),
        ChatMessage(role="assistant", content="A cat."),
        message("user", "And this?", data_url(b"3")),
    ]
    request = conversation(messages, MediaRules(), RequestLimits(), folder)
    assert [(turn.role, turn.content) for turn in request.messages] == [
        ("system", "Be short."),
        ("user", "<image>\nWhat is it?<video>\n"),
        ("assistant", "A cat."),
        ("user", "And this?<image>\n"),
    ]
    assert [Path(path).read_bytes() for path in (*request.images, *request.videos)] == [b"1", b"3", b"2"]
    jinja2 = pytest.importorskip("jinja2")
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}, {"type": "video"}]}]
    assert jinja2.Template(CHAT_TEMPLATE).render(messages=parts) == f"<|im_start|>user\n{request.messages[1].content}<|im_end|>\n"


def test_the_media_of_a_request_have_a_budget_together(folder: Path):
    messages = [message("user", data_url(b"x" * 10), data_url(b"y" * 10, "video/mp4"))]
    (folder / "fits").mkdir()
    conversation(messages, MediaRules(), RequestLimits(media_bytes=20), folder / "fits")
    with pytest.raises(ApiError) as caught:
        conversation(messages, MediaRules(), RequestLimits(media_bytes=19), folder)
    assert (caught.value.status, caught.value.param) == (400, "messages.0.content.1")
    assert "the media up to this one have 20 bytes, the server allows 19 for a request" in caught.value.message


def test_the_budget_is_checked_before_the_first_medium_is_written_or_fetched(root: Path, folder: Path):
    """Sizes of data: URLs and of files are known from the start."""
    fetched: list[str] = []

    class Host:
        def fetch(self, url: str, target: BinaryIO, most: Optional[int] = None) -> None:
            fetched.append(f"{url} {most}")
            target.write(b"z" * 7)

    rules = MediaRules(root=root, fetcher=Host())  # type: ignore[arg-type]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in ("http://host/a", data_url(b"x" * 10), "sub dir/a.png")]
    messages = [ChatMessage.model_validate({"role": "user", "content": parts})]
    with pytest.raises(ApiError, match="messages.0.content.2: the media up to this one have 26 bytes, the server allows 25"):
        conversation(messages, rules, RequestLimits(media_bytes=25), folder)
    assert not fetched and not list(folder.rglob("*"))
    with pytest.raises(ApiError, match="messages.0.content.0: the media up to this one have 33 bytes, the server allows 32"):
        conversation(messages, rules, RequestLimits(media_bytes=32), folder)
    assert fetched == ["http://host/a 6"], "it is told what is left for it"


def test_a_large_data_url_is_decoded_in_pieces(folder: Path):
    content = bytes(range(256)) * 10_000
    url = data_url(content)
    assert Path(MediaRules().path_of(url, "image", folder, 1)).read_bytes() == content
    at = url.index(",") + 1 + (1 << 20)
    for wrong in (url[: at - 1] + "=" + url[at:], url[:at] + "*" + url[at + 1 :], url[:-1]):
        with pytest.raises(MediaRefused, match="image 2: its data: URL is no base64"):
            MediaRules().path_of(wrong, "image", folder, 2)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    "messages, message",
    [
        ([message("user", "see <image> here")], "messages.0.content.0: the text holds the tag <image>"),
        ([ChatMessage(role="user", content="<video>")], "messages.0.content: the text holds the tag <video>"),
        ([message("user", *[data_url()] * 3)], "the request has 3 images, the server allows 2"),
        ([message("user", "x" * 99)], "the texts have 99 characters, the server allows 50"),
        ([message("assistant", data_url()), message("user", "x")], "messages.0.content.0: media are the user's"),
        ([message("user", "a", "data:image/png;base64,*")], "messages.0.content.1: image 1: its data: URL is no base64"),
    ],
)
def test_what_a_conversation_may_not_hold_is_a_400(messages: list[ChatMessage], message: str, folder: Path):
    with pytest.raises(ApiError) as caught:
        conversation(messages, MediaRules(), RequestLimits(images=2, characters=50), folder)
    assert caught.value.status == 400 and message in caught.value.message
    assert caught.value.param is not None
