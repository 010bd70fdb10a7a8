"""What a server needs of the request loop: requests taken in slices, limits, and errors that say whose fault they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.data.batch import MediaFailure
from mindspeed_vita.engine import session as processes
from mindspeed_vita.inference import request_loop
from mindspeed_vita.inference.answer import answer_all
from mindspeed_vita.inference.request import Request, ask
from mindspeed_vita.inference.request_loop import RequestLoop
from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.inference.session import InferenceSession, SessionSettings, load_session
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe

FOUR = SamplingParams(max_tokens=4)


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


def test_a_film_taken_in_slices_has_the_names_that_it_has_as_a_whole(
    session: InferenceSession, film: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = RequestLoop(session)
    wanted = answer_all(whole, [(ask("What happens?", [], [film]), FOUR)])[0]
    monkeypatch.setattr(request_loop, "_FRAMES_AT_ONCE", 5)
    loop = RequestLoop(session)
    other = loop.add(ask("Hi?"), SamplingParams(max_tokens=40))
    slices, steps = loop.admit(ask("What happens?", [], [film]), FOUR), 0
    while True:
        try:
            next(slices)
        except StopIteration as done:
            number = done.value
            break
        steps += 1
        assert [update.number for update in loop.step()] in ([other], []), "the other one goes on"
    assert steps == 5
    assert set(whole.memo._held.values()) == set(loop.memo._held.values()), "the same digests"
    answers: dict[int, Any] = {}
    while not loop.idle:
        answers.update({update.number: update.answer for update in loop.step() if update.answer is not None})
    assert answers[number] == wanted and wanted.frames == (23,) and len(answers[other].token_ids) == 40


def _drive(coming: list[Any]) -> tuple[list[int], list[str]]:
    """A slice of each in turn, as the server does; the numbers of what was taken, and why the rest was not."""
    numbers, problems = [], []
    while coming:
        slices = coming.pop(0)
        try:
            next(slices)
            coming.append(slices)
        except StopIteration as done:
            numbers.append(done.value)
        except ValueError as error:
            problems.append(str(error))
    return numbers, problems


@pytest.mark.parametrize(
    ("first", "wanted", "taken"),
    [
        ("goes on", [10, 10, 3], 3),
        ("fails", [10, 10, 10, 10, 3], 2),
        ("is closed", [10, 10, 10, 3], 2),
        ("is passed by add", [10, 10, 10, 3, 10, 3], 3),  # which cannot wait: nobody would go on with the first
    ],
)
def test_choices_of_one_film_decode_it_once(
    session: InferenceSession, film: str, monkeypatch: pytest.MonkeyPatch, first: str, wanted: list[int], taken: int
) -> None:
    monkeypatch.setattr(request_loop, "_FRAMES_AT_ONCE", 10)
    loop, request, digests = RequestLoop(session), ask("What happens?", [], [film]), session.digests
    decoded: list[int] = []

    def counted(prompt: Any, settings: str) -> Any:
        decoded.append(len(prompt.tile_starts_N))
        if first == "fails" and len(decoded) == 2:
            return [], MediaFailure("prompt", 0, "film", "broke")
        return digests(prompt, settings)

    monkeypatch.setattr(session, "digests", counted)
    coming = [loop.admit(request, FOUR) for _ in range(3)]
    for slices in coming:
        next(slices)
    assert decoded == [10], "the others wait"
    if first == "is closed":
        coming.pop(0).close()
    if first == "is passed by add":
        loop.add(request, FOUR)
    numbers, problems = _drive(coming)
    assert decoded == wanted and len(numbers) == taken and problems == (["film broke"] if first == "fails" else [])
    while not loop.idle:
        loop.step()


def test_slices_that_are_given_up_leave_nothing(session: InferenceSession, film: str) -> None:
    loop = RequestLoop(session)
    slices = loop.admit(ask("What happens?", [], [film]), FOUR)
    next(slices)
    slices.close()
    assert loop.idle and not loop.scheduler.waiting and not session.runner.prompts


def test_a_file_that_goes_away_is_the_requests_fault(session: InferenceSession, tmp_path: Path) -> None:
    path = tmp_path / "gone.png"
    Image.new("RGB", (40, 40)).save(path)
    loop = RequestLoop(session)
    slices = loop.admit(ask("What?", [str(path)]), FOUR)
    next(slices)
    path.unlink()
    with pytest.raises(ValueError, match=r"gone.png cannot be read \(No such file or directory\)"):
        next(slices)
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
