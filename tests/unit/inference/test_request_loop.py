"""What a server needs of the request loop: requests prepared elsewhere, limits, and errors that say whose fault they are."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.engine import session as processes
from mindspeed_vita.inference import tile_feed, tile_memo
from mindspeed_vita.inference.answer import answer_all
from mindspeed_vita.inference.request import Answer, Request, ask
from mindspeed_vita.inference.request_loop import RequestLoop
from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.inference.session import InferenceSession, SessionSettings, load_session
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe

FOUR = SamplingParams(max_tokens=4)
TAIL = 16 // 4
"""Most frames of the block in which a film ends: the question behind it is in that block, too, so each question computes it anew."""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceSession]:
    folder = tmp_path_factory.mktemp("loop")
    make_tokenizer(folder / "tokenizer")
    native.save_full_weights(folder / "run", random_weights(seed=6), tiny_recipe(tokenizer=str(folder / "tokenizer"), max_frames=64))
    borrowed = torch.distributed.is_initialized()
    yield load_session(folder / "run", settings=SessionSettings(cache_memory=1 << 23, block_size=16))
    if not borrowed:
        processes.shutdown()


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("film")
    for number in range(23):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return str(folder)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Tiles that were decoded, and bytes of media that were hashed."""
    done: Counter[str] = Counter()
    decode, digest = tile_feed.decode_tiles, tile_memo.media_digest

    def decoded(samples: Any, wanted: range, *rest: Any) -> Any:
        done["tiles"] += len(wanted)
        return decode(samples, wanted, *rest)

    def hashed(path: Any) -> bytes:
        done["bytes"] += Path(path).stat().st_size if Path(path).is_file() else 0
        return digest(path)

    monkeypatch.setattr(tile_feed, "decode_tiles", decoded)
    monkeypatch.setattr(tile_memo, "media_digest", hashed)
    return done


def size_of(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).iterdir())


def finish(loop: RequestLoop) -> dict[int, Answer]:
    answers = {}
    while not loop.idle:
        answers.update({update.number: update.answer for update in loop.step() if update.answer is not None})
    return answers


def test_the_first_question_about_a_film_reads_it_once_and_decodes_it_once(
    session: InferenceSession, film: str, work: Counter[str]
) -> None:
    loop = RequestLoop(session)
    first = answer_all(loop, [(ask("What happens?", [], [film]), FOUR)])[0]
    assert work == {"tiles": 23, "bytes": size_of(film)} and first.frames == (23,)
    second = answer_all(loop, [(ask("What happens?", [], [film]), FOUR)])[0]
    assert work == {"tiles": 23, "bytes": 2 * size_of(film)}, "each question reads the file, to see whether it is the same film"
    assert second == first and second.cached_tokens == (first.prompt_tokens - 1) // 16 * 16


@pytest.mark.parametrize("prefill_tokens", [8192, 32])
def test_questions_about_one_film_that_come_at_once_decode_it_once(
    session: InferenceSession, film: str, work: Counter[str], prefill_tokens: int
) -> None:
    """In chunks of 32 tokens, a frame at the edge of two chunks is decoded for both."""
    texts = ["What happens?", "Who is it?", "Yes or no?"]
    alone = [answer_all(RequestLoop(session), [(ask(text, [], [film]), FOUR)])[0] for text in texts]
    work.clear()
    loop = RequestLoop(session, prefill_tokens=prefill_tokens)
    answers = answer_all(loop, [(ask(text, [], [film]), FOUR) for text in texts])
    assert answers == alone
    edges = answers[0].prompt_tokens // prefill_tokens
    assert 23 <= work["tiles"] <= 23 + edges + 2 * TAIL
    assert [answer.cached_tokens >= 23 * 3 for answer in answers] == [False, True, True]


@pytest.mark.parametrize("first", ["goes on", "is cancelled", "fails", "is of another file"])
def test_a_question_that_comes_while_a_film_is_computed(
    session: InferenceSession, film: str, work: Counter[str], first: str, tmp_path: Path
) -> None:
    """It uses what is computed already, waits for what is being computed, and goes on alone where the first one ends early."""
    film = str(shutil.copytree(film, tmp_path / "film"))
    wanted = answer_all(RequestLoop(session), [(ask("Who is it?", [], [film]), FOUR)])[0]
    work.clear()
    loop = RequestLoop(session, prefill_tokens=32)
    one = loop.add(ask("What happens?", [], [film]), FOUR)
    loop.step()
    other = loop.add(ask("Who is it?", [], [film]), FOUR)
    loop.step()
    assert 0 < work["tiles"] < 23 and [state.number for state in loop.scheduler.running] == [one], "the other one waits"
    if first == "is cancelled":
        loop.cancel(one)
    elif first == "fails":
        loop._fail(one, "media", "it broke")
    elif first == "is of another file":
        (Path(film) / "22.png").touch()
    answers = finish(loop)
    assert answers[other] == wanted and answers[other].cached_tokens >= 32
    twice = 23 if first == "is of another file" else 0  # what is found in a file that changed is of no use to others
    assert work["tiles"] <= 23 + wanted.prompt_tokens // 32 + TAIL + twice
    assert not loop._names._requests and not loop._names._media
    work.clear()
    answer_all(loop, [(ask("Yes?", [], [film]), FOUR)])
    # frames that were learnt before the change still have the same bytes; the others are decoded again
    assert work["tiles"] <= TAIL if not twice else work["tiles"] > TAIL


def _picture(path: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(path)


def test_blocks_are_named_by_the_pixels_that_were_computed_not_by_the_file_that_was_asked_about(
    session: InferenceSession, tmp_path: Path
) -> None:
    path, question = tmp_path / "a.png", "<image>\nWhat? A photo of a cat on a table. Two people."
    right = []
    for seed in (1, 2):
        _picture(path, seed)
        right.append(answer_all(RequestLoop(session), [(ask(question, [str(path)]), FOUR)])[0])
    loop = RequestLoop(session)
    _picture(path, 1)
    number = loop.add(ask(question, [str(path)]), FOUR)
    _picture(path, 2)  # after it was read, before it is decoded
    assert finish(loop)[number] == right[1] and not len(loop.memo), "the file is not the one that was read"
    for seed in (1, 2):
        _picture(path, seed)
        again = [answer_all(loop, [(ask(question, [str(path)]), FOUR)])[0] for _ in range(2)]
        assert again == [right[seed - 1]] * 2 and [answer.cached_tokens > 0 for answer in again] == [False, True]


def test_a_known_picture_that_is_replaced_before_it_is_decoded_again_ends_its_request(session: InferenceSession, tmp_path: Path) -> None:
    path, question = tmp_path / "a.png", "<image>\nWhat? A photo of a cat on a table. Two people."
    _picture(path, 1)
    memo = RequestLoop(session)
    answer_all(memo, [(ask(question, [str(path)]), FOUR)])
    loop = RequestLoop(session)
    loop.memo._held.update(memo.memo._held)  # known, but its blocks are gone
    number = loop.add(ask(question, [str(path)]), FOUR)
    other = loop.add(ask("Hi?"), FOUR)
    _picture(path, 2)
    answers = finish(loop)
    assert (answers[number].reason, answers[number].fault) == ("error", "media")
    assert answers[number].message == f"{path} changed while the request waited; ask again"
    assert answers[other].reason == "length" and sum(counts.used + counts.cached for counts in loop.counts()) <= 2


def test_a_request_may_be_prepared_elsewhere(session: InferenceSession, film: str) -> None:
    loop, request = RequestLoop(session), ask("What happens?", [], [film])
    wanted = answer_all(RequestLoop(session), [(request, FOUR)])[0]
    number = loop.take(loop.prepare(request), FOUR)
    assert finish(loop) == {number: wanted}


def test_while_a_film_is_decoded_an_answer_goes_on(session: InferenceSession, film: str, work: Counter[str]) -> None:
    loop = RequestLoop(session, prefill_tokens=32)
    going = loop.add(ask("Hi?"), SamplingParams(max_tokens=64, ignore_end=True, logprobs=0))
    loop.step()
    loop.add(ask("What happens?", [], [film]), FOUR)
    decoded = []
    for _ in range(3):
        before = work["tiles"]
        tokens = [len(update.tokens) for update in loop.step() if update.number == going]
        decoded.append((work["tiles"] - before, sum(tokens)))
    assert all(0 < tiles < 23 for tiles, _ in decoded) and sum(tokens for _, tokens in decoded) > 0
    for number in list(loop._active):
        loop.cancel(number)
    finish(loop)


def test_a_prepared_request_that_is_not_taken_leaves_nothing(session: InferenceSession, film: str) -> None:
    loop = RequestLoop(session)
    loop.prepare(ask("What happens?", [], [film]))
    assert loop.idle and not loop.scheduler.waiting and not session.runner.prompts and not loop._names._requests


def test_a_file_that_goes_away_is_the_requests_fault(
    session: InferenceSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gone.png"
    Image.new("RGB", (40, 40)).save(path)
    loop = RequestLoop(session)
    encode = session.prompts.encode

    def gone(request: Request) -> Any:
        prompt = encode(request)
        path.unlink()
        return prompt

    monkeypatch.setattr(session.prompts, "encode", gone)
    with pytest.raises(ValueError, match=r"gone.png cannot be read \(No such file or directory\)"):
        loop.add(ask("What?", [str(path)]), FOUR)
    assert loop.idle


def test_an_error_says_whose_fault_it_is(session: InferenceSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(path)
    loop = RequestLoop(session)
    media = loop.add(ask("What?", [str(path)]), FOUR)
    late = loop.add(ask("Hi?"), FOUR, time_limit=0.0)
    broken = loop.add(ask("No?"), SamplingParams(max_tokens=4, temperature=1.0))
    fine = loop.add(ask("Yes?"), FOUR)
    path.write_bytes(path.read_bytes()[:200])
    run = session.runner.run

    def with_nan(step: Any) -> Any:
        result = run(step)
        if broken in step.sampled:
            result.logits[step.sampled.index(broken)] = float("nan")
        return result

    monkeypatch.setattr(session.runner, "run", with_nan)
    answers: dict[int, Any] = {}
    while not loop.idle:
        answers.update({update.number: update.answer for update in loop.step() if update.answer is not None})
    assert [answers[number].fault for number in (media, late, broken, fine)] == ["media", "time", "model", ""]
    assert "logits are not finite" in answers[broken].message and answers[fine].reason == "length"


def test_lengths_have_limits(session: InferenceSession) -> None:
    loop = RequestLoop(session, max_length=40, answer_tokens=6)
    assert loop.scheduler.room() == 40
    answer = answer_all(loop, [(ask("Hi?"), SamplingParams(ignore_end=True))])[0]
    assert len(answer.token_ids) == 6
    with pytest.raises(ValueError, match="the model has 40 positions"):
        loop.add(ask("Hi?"), SamplingParams(max_tokens=40))


def test_a_second_request_finds_the_first_ones_blocks(session: InferenceSession) -> None:
    loop, request = RequestLoop(session), ask("A photo of a cat on a table.")
    first, second = (answer_all(loop, [(request, FOUR)])[0] for _ in range(2))
    assert first.cached_tokens == 0 and second.cached_tokens >= 16 and first == second


def test_a_text_is_gone_on_with(session: InferenceSession) -> None:
    loop = RequestLoop(session)
    text = "A photo of a cat"
    answer = answer_all(loop, [(Request(messages=(), text=text), FOUR)])[0]
    assert answer.prompt_tokens == len(session.loaded.tokenizer(text)["input_ids"])
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        loop.add(Request(messages=(), text=""), FOUR)
    with pytest.raises(ValueError, match="reserved token"):
        loop.add(Request(messages=(), text="a <|im_end|>"), FOUR)
