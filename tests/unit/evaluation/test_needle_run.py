"""A needle test of a tiny random model: what is computed is what was counted, and a stop goes on where it was."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.engine import session as processes
from mindspeed_vita.evaluation.needle_cases import Case
from mindspeed_vita.evaluation.needle_count import Cost, count
from mindspeed_vita.evaluation.needle_grid import Grid
from mindspeed_vita.evaluation.needle_media import NeedleMedia
from mindspeed_vita.evaluation.needle_record import NeedleRecord
from mindspeed_vita.evaluation.needle_run import answer_cases
from mindspeed_vita.inference.request_loop import RequestLoop
from mindspeed_vita.inference.session import InferenceSession, SessionSettings, load_session
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe

GRID = Grid(lengths=(60, 120), depths=(0.0, 0.5, 1.0), samples=1, tasks=("colour", "nth"), control=True)
SMALL = SessionSettings(cache_memory=5 * 256 * 2 * 2 * 2 * 8 * 4)
"""Five blocks: an answer about the longest haystack, of 751 tokens, and one more block."""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceSession]:
    folder = tmp_path_factory.mktemp("needles")
    make_tokenizer(folder / "tokenizer")
    native.save_full_weights(folder / "run", random_weights(seed=6), tiny_recipe(tokenizer=str(folder / "tokenizer")))
    borrowed = torch.distributed.is_initialized()
    yield load_session(folder / "run", settings=SMALL, max_frames=120)
    if not borrowed:
        processes.shutdown()


def asked(session: InferenceSession, cases: Sequence[Case], folder: Path, media: str = "video") -> NeedleRecord:
    """The cases, answered by a cache that holds nothing yet."""
    record = NeedleRecord(folder, {"media": media})
    folder.mkdir(exist_ok=True)
    drawn = NeedleMedia(folder / "media", session.loaded.recipe.model.vision.tile_size)
    answer_cases(RequestLoop(session, prefill_tokens=512), cases, media, drawn, record, lambda done: None)
    assert {path.name for path in drawn.folder.iterdir()} == {"frames"}, "films are removed once they are answered"
    return record


def computed(record: NeedleRecord) -> int:
    return sum(row["prompt_tokens"] - row["cached_tokens"] for row in record.rows.values())


@pytest.mark.parametrize("media", ["video", "pictures"])
def test_what_is_computed_is_what_was_counted(session: InferenceSession, tmp_path: Path, media: str) -> None:
    grid = replace(GRID, media=media) if media == "video" else Grid(lengths=(60,), depths=(0.0, 1.0), samples=1, media=media)
    wanted = sum(count(grid.cases(), session.prompts, media).values(), Cost())
    record = asked(session, grid.cases(), tmp_path / "test", media)
    assert len(record.rows) == len(grid.cases()) == wanted.requests
    assert sum(row["prompt_tokens"] for row in record.rows.values()) == wanted.tokens
    assert computed(record) == wanted.computed < 0.75 * wanted.tokens


def test_another_order_computes_more(session: InferenceSession, tmp_path: Path) -> None:
    """With room for little more than one haystack, the order is what makes the cache serve."""
    cases = GRID.cases()
    ordered = sum(count(cases, session.prompts, "video").values(), Cost()).computed
    random.Random(1).shuffle(cases)
    assert computed(asked(session, cases, tmp_path / "test")) > 1.1 * ordered


def test_a_stop_goes_on_where_it_was(session: InferenceSession, tmp_path: Path) -> None:
    cases = Grid(lengths=(8,), depths=(0.0, 1.0), samples=3).cases()
    whole = asked(session, cases, tmp_path / "whole")
    lines = whole.path.read_bytes().splitlines(keepends=True)
    (tmp_path / "part").mkdir()
    part = tmp_path / "part" / whole.path.name
    part.write_bytes(b"".join(lines[:5]) + lines[5][:20])
    again = asked(session, cases, tmp_path / "part")
    texts = [[json.loads(line) for line in path.read_text().splitlines()] for path in (whole.path, part)]
    assert texts[0][:5] == texts[1][:5] and {row["key"]: row["answer"] for row in texts[0][1:]} == {
        row["key"]: row["answer"] for row in texts[1][1:]
    }
    assert again.rows.keys() == whole.rows.keys() and len(texts[1]) == len(cases) + 1


def test_a_record_of_another_test_is_refused(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text('{"needle": {"seed": 0, "lengths": [4]}}\n')
    assert NeedleRecord(tmp_path, {"seed": 0, "lengths": [4]}).rows == {}
    with pytest.raises(ValueError, match=r"belongs to another test \(lengths was \[4\], is \[8\]\); choose another --output"):
        NeedleRecord(tmp_path, {"seed": 0, "lengths": [8]})


@pytest.mark.parametrize("content", ["hello\n", "[]\n", '{"needle": {"seed": 0}}\n{"no": "key"}\n', '{"line": 1}\n', "\xff\n"])
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "answers.jsonl").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match="is no record of a needle test; choose another --output"):
        NeedleRecord(tmp_path, {"seed": 0})


def test_a_frame_that_cannot_be_read_ends_the_test(session: InferenceSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = Grid(lengths=(6,), depths=(0.5,), samples=1).cases()
    draw = NeedleMedia.draw

    def broken(self: NeedleMedia, frames: Sequence[object]) -> list[Path]:
        files = draw(self, frames)  # type: ignore[arg-type]
        files[3].write_bytes(b"no picture")
        return files

    monkeypatch.setattr(NeedleMedia, "draw", broken)
    with pytest.raises(ValueError, match="png"):
        asked(session, cases, tmp_path / "test")
