"""lmms-eval's model classes, driven by the calls that the real lmms-eval 0.7.3 made of them (tests/lmms_eval_plugin/record.py), and edges.

A few classes stand in for lmms-eval's own, with the attributes that the recorded run used.
"""

from __future__ import annotations

import base64
import importlib
import io
import json
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import pytest
import torch
from PIL import Image

from mindspeed_vita.engine import session as processes
from mindspeed_vita.evaluation.lmms_eval import NAME, manifest, requests, start
from mindspeed_vita.evaluation.pictures import PictureFolder
from mindspeed_vita.evaluation.shared_session import LONGEST_PAUSE, SharedSession
from mindspeed_vita.inference.request import ask
from mindspeed_vita.inference.sampling import SamplingParams
from tests.lmms_eval_plugin.world import picture, write_checkpoints

RECORDED = json.loads((Path(__file__).parents[2] / "lmms_eval_plugin" / "calls.json").read_text())
CALLS = RECORDED["calls"]


@dataclass
class Instance:
    """As lmms_eval.api.instance.Instance, as far as a model sees it."""

    args: tuple[Any, ...]


@dataclass
class TokenCounts:
    input_tokens: Optional[int] = None
    output_tokens: Optional[int] = None


@dataclass
class GenerationResult:
    text: str
    token_counts: Optional[TokenCounts] = None


class CacheHook:
    def add_partial(self, name: str, request: Any, result: Any) -> None:
        assert name == "generate_until" and isinstance(result, str)


class Lmms:
    """As lmms_eval.api.model.lmms."""

    def __init__(self) -> None:
        self._rank, self._world_size, self.cache_hook, self.task_dict = 0, 1, CacheHook(), {}

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world_size


@dataclass
class ModelManifest:
    model_id: str
    simple_class_path: str
    chat_class_path: str


@pytest.fixture(scope="module")
def classes() -> Iterator[dict[str, type]]:
    """Our classes by name, found by the paths that the manifest gives lmms-eval's registry."""
    contents = {
        "lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.models": {}, "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.api.instance": {"Instance": Instance, "TokenCounts": TokenCounts, "GenerationResult": GenerationResult},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, content in contents.items():
            module = types.ModuleType(name)
            module.__dict__.update(content)
            patch.setitem(sys.modules, name, module)
        found = manifest()
        assert found.model_id == NAME
        paths = [path.rsplit(".", 1) for path in (found.simple_class_path, found.chat_class_path)]
        for module_name in {module for module, _ in paths}:
            patch.delitem(sys.modules, module_name, raising=False)
        simple, chat = (getattr(importlib.import_module(module), name) for module, name in paths)
        assert simple.is_simple and not chat.is_simple
        yield {"LongVita": simple, "LongVitaChat": chat}
    sys.modules.pop("mindspeed_vita.evaluation.lmms_eval.model", None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("lmms")
    write_checkpoints(folder)
    (folder / "film").mkdir()
    for number in range(5):
        (folder / "film" / f"{number}.png").write_bytes(picture(number))
    borrowed = torch.distributed.is_initialized()
    yield folder
    if not borrowed:
        processes.shutdown()


def revived(value: Any, folder: Path) -> Any:
    """The opposite of record.plain."""
    if isinstance(value, dict):
        if "picture" in value:
            return Image.open(io.BytesIO(base64.b64decode(RECORDED["pictures"][value["picture"]])))
        return {key: revived(item, folder) for key, item in value.items()}
    if isinstance(value, list):
        return [revived(item, folder) for item in value]
    return str(folder / "film") if value == "FILM" else value


def instance_of(recorded: list[Any], folder: Path) -> Instance:
    """A request whose functions give what the task's own gave."""

    def argument(value: Any) -> Any:
        if isinstance(value, dict) and "called" in value:
            result = revived(value["called"], folder)
            return lambda doc: result
        return revived(value, folder)

    return Instance(tuple(map(argument, recorded)))


class _Docs(dict):  # type: ignore[type-arg]
    def __missing__(self, key: Any) -> Any:
        return {}


class _Tasks(dict):  # type: ignore[type-arg]
    def __missing__(self, key: Any) -> Any:
        return {"test": _Docs()}


@pytest.fixture(scope="module", params=["run", "export"])
def models(request: pytest.FixtureRequest, classes: dict[str, type], world: Path) -> dict[str, Any]:
    """Over native weights, and over their export."""
    found = {name: kind(pretrained=str(world / request.param), batch_size="1", cache_memory="8MB") for name, kind in classes.items()}
    for model in found.values():
        model.task_dict = _Tasks()
    return found


def test_the_recorded_calls_get_the_recorded_answers(models: dict[str, Any], world: Path) -> None:
    assert {(call["call"], call["class"]) for call in CALLS} >= {
        ("init", "LongVitaChat"), ("generate_until", "LongVitaChat"), ("init", "LongVita"), ("generate_until", "LongVita"),
        ("loglikelihood", "LongVita"),
    }  # fmt: skip
    compared = 0
    for call in CALLS:
        if call["call"] == "init":
            assert set(call["options"]) <= {"pretrained", "cache_memory", "batch_size", "max_batch_size", "device"}
            continue
        asked = [instance_of(recorded, world) for recorded in call["requests"]]
        results = getattr(models[call["class"]], call["call"])(asked)
        if call["call"] == "generate_until":
            assert [result.text for result in results] == call["results"]
            assert all(result.token_counts.output_tokens <= 6 for result in results)
        else:
            pairs = [result.text for result in results]
            assert [greedy for _, greedy in pairs] == [greedy for _, greedy in call["results"]]
            assert [loss for loss, _ in pairs] == pytest.approx([loss for loss, _ in call["results"]], abs=1e-4)
        compared += len(results)
    assert compared >= 30


def test_what_greedy_decoding_says_is_greedy_and_likelier(models: dict[str, Any]) -> None:
    model = models["LongVita"]
    context = ("What is it?", lambda doc: [], 0, "some", "test")
    own = model.generate_until([Instance((context[0], {"max_new_tokens": 4}, *context[1:]))])[0].text
    asked = [Instance((context[0], continuation, *context[1:])) for continuation in (f" {own}", "zzzz")]
    (loss, greedy), (other, not_greedy) = (result.text for result in model.loglikelihood(asked))
    assert greedy and not not_greedy and loss < other
    assert model.loglikelihood([Instance(("", "cat"))])[0].text[0] > 0, "without context, for mutual information"


def test_a_row_that_cannot_be_answered_is_named_and_the_model_goes_on(models: dict[str, Any]) -> None:
    model = models["LongVita"]
    good = Instance(("Hi?", {"max_new_tokens": 2}, lambda doc: [], 0, "some", "test"))
    for bad, message in (
        (Instance(("Hi?", {}, lambda doc: ["gone.mp4"], 3, "some", "test")), "task some, document 3: gone.mp4: no such file"),
        (Instance(("<image>?", {}, lambda doc: [], 4, "some", "test")), "document 4: the text has 1 <image> tags for 0 visuals"),
        (Instance(("Hi " * 5000, {}, lambda doc: [], 5, "some", "test")), "document 5: a prompt of"),
        (Instance(("Hi?", {"num_beams": 3}, lambda doc: [], 6, "some", "test")), "document 6: num_beams=3 is not supported"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate_until([good, bad])
    assert len(model.generate_until([good, good])) == 2
    with pytest.raises(ValueError, match="the continuation is empty"):
        model.loglikelihood([Instance(("Hi?", " ", lambda doc: [], 0, "some", "test"))])
    with pytest.raises(NotImplementedError, match="tasks of one round"):
        model.generate_until_multi_round([])


def test_a_rank_that_is_gone_is_told_nothing_and_a_full_disk_spoils_no_later_row(
    models: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = SharedSession(models["LongVita"].shared.session)
    asked = [(name, ask("Hi?"), SamplingParams(max_tokens=2)) for name in ("one", "two")]
    told: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(shared.session, "add", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("rank 1 hangs")))
        patch.setattr(shared.session.ranks, "tell", lambda message, *_: told.append(message[0]))
        with pytest.raises(ConnectionError, match="rank 1 hangs"):
            shared.answers(asked)
    assert not told
    shared = SharedSession(shared.session)
    with monkeypatch.context() as patch:
        add = shared._loop.add
        patch.setattr(shared._loop, "add", lambda *rest: add(*rest) if shared._loop.idle else Path("/dev/null/full").read_bytes())
        with pytest.raises(NotADirectoryError):
            shared.answers(asked)
    assert shared._loop.idle and len(shared.answers(asked)) == 2


def test_options_that_do_not_fit_are_refused(classes: dict[str, type], world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = classes["LongVita"]
    with pytest.raises(ValueError, match="--model_args: unknown max_frame; expected some of pretrained, media_dir, tp, cp, max_frames"):
        make(pretrained=str(world / "run"), max_frame=3)
    for value in ("soon", 0):
        with pytest.raises(ValueError, match=f"rank_timeout is {value!r}; expected"):
            make(pretrained=str(world / "run"), rank_timeout=value)
    assert make(pretrained=str(world / "run"), cache_memory="8MB", rank_timeout="7").shared.session.ranks.timeout == 7
    with pytest.raises(ValueError, match="--device cuda:0, and the model is on cpu"):
        make(pretrained=str(world / "run"), device="cuda:0", cache_memory="8MB")
    monkeypatch.setattr(start, "world_size", lambda: 2)
    monkeypatch.setattr(start.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(start.dist, "get_backend_config", lambda: "cuda:nccl")
    with pytest.raises(ValueError, match="has no gloo .* -m mindspeed_vita.evaluation.lmms_eval"):
        make(pretrained=str(world / "run"))


def test_the_group_that_lmms_eval_meets_in_waits_as_long_as_a_task_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(start.dist, "init_process_group", lambda backend, timeout=None: made.append((backend, timeout)))
    start.begin_processes()
    assert made == [("gloo", LONGEST_PAUSE)]


def test_visuals_and_messages_become_parts(tmp_path: Path) -> None:
    pictures = PictureFolder(tmp_path / "pictures")
    one, two = (Image.open(io.BytesIO(picture(seed))) for seed in (0, 1))
    (tmp_path / "film").mkdir()
    parts = requests.parts_of_visuals("Is <image> like <image>?", [[one], two], pictures)
    assert [kind for kind, _ in parts] == ["text", "image", "text", "image", "text"]
    assert Image.open(parts[1][1]).tobytes() == one.tobytes(), "without loss"
    clip = {"url": str(tmp_path / "film"), "video_start": 1, "video_end": 2}
    assert requests.parts_of_visuals("?", [clip], pictures) == [("video", f"{tmp_path / 'film'}#t=1.0,2.0"), ("text", "?")]
    content = [{"type": "image", "url": one}, {"type": "text", "text": "T"}]
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": content}]
    turns = requests.parts_of_messages(messages, pictures)
    assert turns[0] == ("system", [("text", "S")]) and [kind for kind, _ in turns[1][1]] == ["image", "text"]
    with pytest.raises(ValueError, match="has sound, which Long-VITA does not hear"):
        requests.parts_of_messages([{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}], pictures)


def test_generation_settings_of_tasks() -> None:
    greedy = requests.choosing({"until": ["\n\n", ""], "max_new_tokens": 16, "temperature": 0, "top_p": None, "num_beams": 1})
    assert greedy == SamplingParams(max_tokens=16, stop=("\n\n",)) and requests.choosing({}).max_tokens == 1024
    assert requests.choosing({"do_sample": False, "temperature": 0.7}).temperature == 0
    drawn = requests.choosing({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "until": "x"})
    assert (drawn.temperature, drawn.top_p, drawn.stop) == (0.7, 0.9, ("x",))
    with pytest.warns(UserWarning, match="does not use the generation settings image_aspect_ratio"):
        requests.choosing({"image_aspect_ratio": "pad"})
