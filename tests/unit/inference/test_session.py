"""A session in one process: from any format, within a bound in bf16, with few tiles in memory, and with one message for bad input."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mindspeed_vita.checkpoint.hf.export import export_hf
from mindspeed_vita.checkpoint.hf.internvl_files import INTERNVL_LAYOUT
from mindspeed_vita.checkpoint.mapping.mindspeed_names import to_mindspeed
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.cli.main import main
from mindspeed_vita.engine import session as processes
from mindspeed_vita.files.safetensors_folder import SINGLE, SafetensorsFolder
from mindspeed_vita.inference import loading, tile_feed
from mindspeed_vita.inference.answer import answer_all, generate
from mindspeed_vita.inference.chat import Chat
from mindspeed_vita.inference.loading import load_model
from mindspeed_vita.inference.request import Answer, Request, ask
from mindspeed_vita.inference.request_loop import RequestLoop
from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.inference.session import InferenceSession, SessionSettings, load_session
from tests.inference_steps import Drive
from tests.tiny_checkpoint import make_tokenizer, random_weights, tiny_recipe, write_internvl_chat

SMALL = SessionSettings(cache_memory=1 << 23, block_size=16)
FOUR = SamplingParams(max_tokens=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same weights as a native run, an export, both layouts of InternVL and MindSpeed-LLM's files; media."""
    folder = tmp_path_factory.mktemp("session")
    tokenizer, weights = make_tokenizer(folder / "tokenizer"), random_weights(seed=6)
    recipe = tiny_recipe(tokenizer=str(folder / "tokenizer"), max_frames=64)
    native.save_full_weights(folder / "run", weights, recipe)
    export_hf(weights, recipe, folder / "export", tokenizer=tokenizer)
    export_hf(weights, recipe, folder / "internvl", tokenizer=tokenizer, layout=INTERNVL_LAYOUT)
    write_internvl_chat(folder / "chat", weights)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "internvl" / name, folder / "chat")
    (folder / "mindspeed" / "mp_rank_00").mkdir(parents=True)
    extra = torch.frombuffer(bytearray(json.dumps({"recipe": asdict(recipe)}).encode()), dtype=torch.uint8)
    content = {to_mindspeed(name): tensor for name, tensor in weights.items()}
    torch.save({"model": {**content, "_extra_state": extra}}, folder / "mindspeed" / "mp_rank_00" / "model_optim_rng.pt")
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (40, 80, 3), dtype=np.uint8)).save(folder / "wide.png")
    (folder / "film").mkdir()
    for number in range(23):
        Image.fromarray(draw.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / "film" / f"{number:02d}.png")
    borrowed = torch.distributed.is_initialized()
    yield folder
    if not borrowed:
        processes.shutdown()


@pytest.fixture(scope="module")
def session(folder: Path) -> InferenceSession:
    return load_session(folder / "run", settings=SMALL)


def _logits(session: InferenceSession, request: Request) -> torch.Tensor:
    session.runner.add(0, session.prompts.encode(request), longest=4096)
    return Drive(session).greedy([0], 6)[1]


def test_every_format_gives_the_same_logits(folder: Path, session: InferenceSession) -> None:
    request = ask("What?", [str(folder / "wide.png")])
    wanted = _logits(session, request)
    for name in ("export", "mindspeed", "internvl", "chat"):
        other = load_session(folder / name, settings=SMALL)
        assert other.loaded.recipe.train.precision == "fp32"
        # the projector of the last one is padded with zeros: sums of other lengths; worst seen 1e-6
        torch.testing.assert_close(_logits(other, request), wanted, rtol=0, atol=1e-5 if name == "chat" else 0, msg=name)


def test_the_fixed_decoder_takes_every_format_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = set()
    for name in ("run", "export", "mindspeed", "internvl", "chat"):
        command = ["generate", str(folder / name), "--prompt", "What?", "--image", str(folder / "wide.png"), "--max-new-tokens", "6"]
        assert main([*command, "--decode", "fixed"]) == 0 and main(command) == 0
        said |= set(capsys.readouterr().out.rstrip("\n").split("\n"))
    assert len(said) == 1


def test_a_damaged_native_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "run", tmp_path / "run")
    file = next(copy.glob("*/weights/*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="rank_00000.safetensors"):
        load_model(copy)


def test_a_projector_with_biases_is_refused_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "chat", tmp_path / "chat")
    held = load_file(copy / SINGLE)
    held["mlp1.1.bias"] += 0.25
    save_file(held, copy / SINGLE)
    with pytest.raises(ValueError, match="mlp1.1.bias has values up to 0.25; .*vita convert --new-projector takes the decoder"):
        load_model(copy)


def test_bf16_stays_within_a_bound_of_fp32(folder: Path, session: InferenceSession) -> None:
    """Worst seen: 0.09, of logits up to 4.4. bf16 rounds each of the model's some 30 intermediate results by up to 2.0e-3 of itself."""
    request = ask("What?", [str(folder / "wide.png")])
    low = InferenceSession(load_model(folder / "run", precision="bf16"), SMALL)
    assert low.cache.tensor.dtype == torch.bfloat16
    found = []
    for each in (session, low):
        each.runner.add(0, each.prompts.encode(request), longest=4096)
        drive = Drive(each)
        found.append(torch.cat([drive.prefill([0], chunk=32), *(drive.decode({0: token}) for token in (70, 81, 99))]))
    assert float((found[0] - found[1]).abs().max()) < 0.25


def test_a_long_film_is_never_in_memory_as_tiles(folder: Path, session: InferenceSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a few tiles exist at a time, also where one chunk holds the whole film, and each is encoded once for a chunk that holds it."""
    request = ask("What happens?", [], [str(folder / "film")])
    wanted = _logits(session, request)
    alive: list[int] = []
    decoded: list[int] = []
    decode = tile_feed.decode_tiles

    def counted(samples: Any, wanted: range, *rest: Any) -> Any:
        alive.append(len(wanted))
        decoded.append(len(wanted))
        return decode(samples, wanted, *rest)

    def encoded(module: Any, arguments: Any, output: torch.Tensor) -> None:
        assert sum(alive) <= 4
        alive.remove(len(output))

    monkeypatch.setattr(tile_feed, "decode_tiles", counted)
    few = InferenceSession(session.loaded, SessionSettings(cache_memory=1 << 23, block_size=16, tiles_in_flight=4))
    hook = session.loaded.model.vision.register_forward_hook(encoded)
    found = _logits(few, request)
    hook.remove()
    assert sum(decoded) == 23 and max(decoded) == 2
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_a_second_question_about_a_film_decodes_nothing_and_costs_its_own_tokens(
    folder: Path, session: InferenceSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, film = RequestLoop(session), str(folder / "film")
    first = answer_all(loop, [(ask("What happens?", [], [film]), FOUR)])[0]
    decoded: list[range] = []
    decode = tile_feed.decode_tiles
    monkeypatch.setattr(tile_feed, "decode_tiles", lambda samples, wanted, *rest: decoded.append(wanted) or decode(samples, wanted, *rest))
    number = loop.add(ask("Who is it?", [], [film]), FOUR)
    step = loop.scheduler.schedule()
    loop.scheduler._in_flight = None
    assert number == step.prefill[0].sequence and not decoded
    assert step.num_tokens < 16 + 32 < first.prompt_tokens / 2


def test_a_film_replaced_under_its_name_is_another_film(folder: Path, session: InferenceSession) -> None:
    path = folder / "changing.png"
    loop = RequestLoop(session)
    answers: list[Answer] = []
    for seed in (1, 2, 1):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(path)
        answers += answer_all(loop, [(ask("<image>\nWhat? A photo of a cat on a table. Two people.", [str(path)]), FOUR)])
    alone = answer_all(RequestLoop(session), [(ask("<image>\nWhat? A photo of a cat on a table. Two people.", [str(path)]), FOUR)])[0]
    assert answers[0].token_ids == answers[2].token_ids == alone.token_ids and len(loop.memo) == 2
    assert [answer.cached_tokens for answer in answers] == [0, 0, (alone.prompt_tokens - 1) // 16 * 16]


def test_scores_that_are_no_numbers_end_their_request_alone(session: InferenceSession, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, run = RequestLoop(session), session.runner.run

    def broken(step: Any) -> Any:
        result = run(step)
        result.logits[: len(step.prefill)][:1] = float("nan")
        return result

    monkeypatch.setattr(session.runner, "run", broken)
    answers = answer_all(loop, [(ask("Hi?"), FOUR), (ask("Yes?"), FOUR)])
    assert answers[0].reason == "error" and answers[0].message.startswith("the model's logits are not finite")
    assert answers[1].reason == "length"


def test_the_answer_comes_in_pieces(folder: Path, session: InferenceSession) -> None:
    loop = RequestLoop(session)
    number = loop.add(ask("Hi?"), SamplingParams(max_tokens=12, logprobs=2))
    pieces, answer = [], None
    while answer is None:
        for update in loop.step():
            assert update.number == number
            pieces.append(update.text)
            answer = update.answer
    assert "".join(pieces) == answer.text and len(pieces) > 2 and answer.reason == "length"
    assert [token.token for token in answer.tokens] == list(answer.token_ids) and len(answer.tokens[0].top) == 2


def test_a_given_text_is_scored_as_the_model_scores_its_own(session: InferenceSession) -> None:
    """What greedy decoding chose has the same log-probabilities when it is forced, and another text has lower ones."""
    own = generate(session, [ask("Hi?")], SamplingParams(max_tokens=6, logprobs=1, watched=(70, 80)))[0]
    again = generate(session, [ask("Hi?")], SamplingParams(max_tokens=6, logprobs=1, forced=own.token_ids))[0]
    assert again.token_ids == own.token_ids and again.tokens == tuple(replace(token, watched=()) for token in own.tokens)
    other = tuple(token + 1 for token in own.token_ids)
    forced = generate(session, [ask("Hi?")], SamplingParams(max_tokens=6, logprobs=1, forced=other, watched=(other[0],)))[0]
    assert forced.token_ids == other and sum(token.logprob for token in forced.tokens) < sum(token.logprob for token in own.tokens)
    assert len(own.watched) == 2 and forced.watched == (forced.tokens[0].logprob,)
    with pytest.raises(ValueError, match=r"forced or watched tokens \[384\] are none of the model's 384"):
        generate(session, [ask("Hi?")], SamplingParams(logprobs=0, watched=(384,)))
    end = session.loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    with pytest.raises(ValueError, match=rf"forced tokens \[{end}\] are stop tokens of the model, which end an answer"):
        generate(session, [ask("Hi?")], SamplingParams(forced=(70, end, 80)))


@pytest.mark.parametrize("error", [ValueError("a bad row"), OSError("a full disk"), ConnectionError("rank 1 hangs"), RuntimeError("bug")])
def test_the_other_ranks_are_told_how_the_first_one_ended_unless_they_are_gone(
    session: InferenceSession, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(session.ranks, "tell", told.append)
    with session.leading() as outcome:
        outcome.result = 3
    with pytest.raises(type(error)), session.leading():
        raise error
    heard = [("end", None, str(error))] if type(error) in (ValueError, OSError) else []
    assert told == [("end", 3, ""), *heard]


def test_a_stop_string_ends_the_answer_before_it(session: InferenceSession) -> None:
    whole = generate(session, [ask("Hi?")], SamplingParams(max_tokens=20))[0]
    stop = whole.text[3:5]
    found = generate(session, [ask("Hi?")], SamplingParams(max_tokens=20, stop=(stop,)))[0]
    assert found.text == whole.text[: whole.text.index(stop)] and found.reason == "stop"


def test_a_seed_gives_the_same_answer_whatever_runs_next_to_it(session: InferenceSession) -> None:
    warm = SamplingParams(max_tokens=8, temperature=1.0, seed=11)
    alone = generate(session, [ask("Hi?")], warm)[0]
    others = generate(session, [ask("Yes?"), ask("Hi?"), ask("No?")], warm)
    assert others[1] == alone and len({answer.token_ids for answer in others}) == 3


def test_a_picture_that_breaks_while_it_is_computed_ends_its_request_alone(
    folder: Path, session: InferenceSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was whole when its tiles were named, and is cut off before they are encoded."""
    path = folder / "cut.png"
    Image.open(folder / "wide.png").save(path)
    loop = RequestLoop(session)
    numbers = [loop.add(ask("What?", [str(path)]), FOUR), loop.add(ask("Hi?"), FOUR)]
    path.write_bytes(path.read_bytes()[:200])
    answers: dict[int, Answer] = {}
    while not loop.idle:
        answers.update({update.number: update.answer for update in loop.step() if update.answer is not None})
    broken, fine = (answers[number] for number in numbers)
    assert broken.reason == "error" and "cut.png cannot be read as a picture" in broken.message
    assert fine.reason == "length" and sum(counts.used for counts in loop.counts()) == 0


@pytest.mark.parametrize(
    ("prompt", "images", "message"),
    [
        ("A photo of a cat. " * 900, [], r"a prompt of \d+ tokens and an answer of up to 4 do not fit"),
        ("What?", ["broken.png"], "broken.png cannot be read as a picture"),
        ("a <|im_end|> b", [], "the text holds a reserved token"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_anything_is_kept(
    folder: Path, session: InferenceSession, prompt: str, images: list[str], message: str
) -> None:
    (folder / "broken.png").write_text("no picture")
    loop = RequestLoop(session)
    with pytest.raises(ValueError, match=message):
        loop.add(ask(prompt, [str(folder / name) for name in images]), FOUR)
    assert loop.idle and not session.runner.prompts
    with pytest.raises(ValueError, match=message):
        generate(session, [ask("Hi?"), ask(prompt, [str(folder / name) for name in images])], FOUR)
    assert not session.runner.prompts


@pytest.mark.parametrize("during", ["run", "prepare"])
def test_an_interrupted_answer_leaves_a_loop_that_goes_on(
    folder: Path, session: InferenceSession, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    """Ctrl-C comes in the middle of a step, or while the film is read."""
    shown: list[str] = []
    chat = Chat(RequestLoop(session), FOUR, shown.append)
    owner = session.runner if during == "run" else chat.loop
    work = getattr(owner, during)

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(owner, during, work)
        signal.raise_signal(signal.SIGINT)
        return work(*arguments)

    monkeypatch.setattr(owner, during, interrupted)
    chat.line(f"/video {folder / 'film'}")
    assert chat.line("What happens?") and shown[-1] == "\n(stopped)\n" and not chat.conversation.messages
    assert chat.loop.idle and not session.runner.prompts and sum(counts.used for counts in chat.loop.counts()) == 0
    assert chat.line("What happens?") and chat.conversation.messages[-1].content
    assert [message.role for message in chat.conversation.messages] == ["user", "assistant"]


def test_an_export_is_read_one_tensor_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank of a large model would hold all of it otherwise."""
    read: list[str] = []
    get = SafetensorsFolder.__getitem__
    monkeypatch.setattr(SafetensorsFolder, "__getitem__", lambda self, name: read.append(name) or get(self, name))
    loading.find_model(folder / "export")
    assert not any("layers" in name for name in read)
    load_model(folder / "export")
    times = Counter(name for name in read if "layers" in name)
    assert set(times) == {name for name in SafetensorsFolder(folder / "export") if "layers" in name} and set(times.values()) == {1}


def test_a_folder_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ValueError, match="is no Long-VITA folder: expected a config.json with model_type 'long_vita', .* found 'qwen2'"):
        load_model(tmp_path)


def test_settings_out_of_range_are_refused(folder: Path, session: InferenceSession) -> None:
    with pytest.raises(ValueError, match="the cache has 100 bytes, one block takes"):
        InferenceSession(session.loaded, SessionSettings(cache_memory=100))
    with pytest.raises(ValueError, match="block_size is 0; expected at least 1"):
        InferenceSession(session.loaded, SessionSettings(block_size=0))
    with pytest.raises(ValueError, match="tiles_in_flight is 1; expected at least 2"):
        InferenceSession(session.loaded, SessionSettings(cache_memory=1 << 23, tiles_in_flight=1))
    with pytest.raises(ValueError, match="says its sizes itself; leave --recipe out"):
        load_model(folder / "run", recipe="recipe.yaml")
    with pytest.raises(ValueError, match="holds no whole checkpoint"):
        load_model(folder / "film")
