"""`vita convert` between all formats: exact there and back, under any layout, and going on where it was stopped."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from mindspeed_vita.checkpoint.megatron.rank_files import SavedLayout, saved_layout
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.cli.main import main
from mindspeed_vita.files import shard_stream, torch_stream
from mindspeed_vita.files.safetensors_file import write_tensors
from mindspeed_vita.files.safetensors_folder import SafetensorsFolder
from tests.tiny_checkpoint import TINY, make_tokenizer, random_weights, tiny_recipe, told

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    make_tokenizer(folder / "tokenizer")
    native.save_full_weights(folder / "run", random_weights(), tiny_recipe(tokenizer=str(folder / "tokenizer")))
    return folder / "run"


def convert(source: Path, to: str, output: Path, *more: str) -> int:
    return main(["convert", "--from", str(source), "--to", to, "--output", str(output), *more])


def weights_of(folder: Path) -> Mapping[str, torch.Tensor]:
    return native.read_full_weights(folder)[0]


def assert_same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]) if name != "_extra_state" else told(left[name]) == told(right[name]), name


@pytest.mark.parametrize("to", ["mindspeed-llm", "megatron"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_ranks_of_any_layout_go_there_and_back(run: Path, tmp_path: Path, to: str, tp: int, pp: int) -> None:
    assert convert(run, to, tmp_path / "ranks", "--tp", str(tp), "--pp", str(pp)) == 0
    assert len(list((tmp_path / "ranks" / "release").iterdir())) == tp * pp
    assert (tmp_path / "ranks" / "latest_checkpointed_iteration.txt").read_text() == "release"
    assert saved_layout(tmp_path / "ranks") == SavedLayout(tp=tp, pp=pp, has_optimizer=False, has_random_state=False)
    assert convert(tmp_path / "ranks", "native", tmp_path / "back") == 0
    assert_same(weights_of(tmp_path / "back"), weights_of(run))


def test_one_layout_becomes_another_without_a_native_step(run: Path, tmp_path: Path) -> None:
    assert convert(run, "mindspeed-llm", tmp_path / "a", "--tp", "2") == 0
    assert convert(tmp_path / "a", "mindspeed-llm", tmp_path / "b", "--pp", "2") == 0
    assert convert(run, "mindspeed-llm", tmp_path / "c", "--pp", "2") == 0
    names = sorted(str(path.relative_to(tmp_path / "b")) for path in (tmp_path / "b").rglob("*.pt"))
    assert names == ["release/mp_rank_00_000/model_optim_rng.pt", "release/mp_rank_00_001/model_optim_rng.pt"]
    for name in names:
        ours, theirs = (torch.load(tmp_path / part / name, weights_only=True) for part in "bc")
        assert_same(ours["model"], theirs["model"])


def test_names_are_those_of_the_program_that_loads_them(run: Path, tmp_path: Path) -> None:
    for to in ("mindspeed-llm", "megatron"):
        assert convert(run, to, tmp_path / to) == 0
    plain, fused = (
        set(torch.load(tmp_path / to / "release/mp_rank_00/model_optim_rng.pt", weights_only=True)["model"])
        for to in ("mindspeed-llm", "megatron")
    )
    assert "decoder.layers.0.input_layernorm.weight" in plain - fused
    assert "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight" in fused - plain
    assert "external_feature_model.vit.decoder.layers.1.mlp.linear_fc1.layer_norm_bias" in fused - plain
    assert "external_feature_model.pre_proj_layernorm.weight" in plain & fused


def test_tied_embeddings_stand_on_the_last_stage_too(run: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    model = replace(TINY, language=replace(TINY.language, tie_embeddings=True))
    native.save_full_weights(tmp_path / "tied", random_weights(model), tiny_recipe(model))
    assert convert(tmp_path / "tied", "mindspeed-llm", tmp_path / "ranks", "--pp", "2", "--tp", "2") == 0
    last = torch.load(tmp_path / "ranks/release/mp_rank_01_001/model_optim_rng.pt", weights_only=True)["model"]
    assert last["output_layer.weight"].shape == (192, 32)
    assert convert(tmp_path / "ranks", "native", tmp_path / "back") == 0
    assert_same(weights_of(tmp_path / "back"), weights_of(tmp_path / "tied"))


def test_types_change_on_the_way(run: Path, tmp_path: Path) -> None:
    for to in ("mindspeed-llm", "hf", "native"):
        assert convert(run, to, tmp_path / to, "--dtype", "bf16") == 0
    for to in ("mindspeed-llm", "hf"):
        assert convert(tmp_path / to, "native", tmp_path / f"{to}-back") == 0
        assert_same(weights_of(tmp_path / f"{to}-back"), weights_of(tmp_path / "native"))
    assert_same(weights_of(tmp_path / "native"), {name: tensor.bfloat16() for name, tensor in weights_of(run).items()})


def test_a_native_output_is_cut_into_files_and_reads_as_one(run: Path, tmp_path: Path) -> None:
    assert convert(run, "native", tmp_path / "cut", "--max-shard-size", "60KB") == 0
    assert len(list((tmp_path / "cut/step_0000000/weights").iterdir())) > 2
    assert_same(weights_of(tmp_path / "cut"), weights_of(run))


@pytest.mark.parametrize(("to", "stops"), [("hf", 3), ("native", 2), ("mindspeed-llm", 3)])
def test_a_stopped_conversion_goes_on_behind_the_last_whole_file(
    run: Path, tmp_path: Path, to: str, stops: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--tp", "2", "--pp", "2"] if to == "mindspeed-llm" else ["--max-shard-size", "60KB"]
    assert convert(run, to, tmp_path / "straight", *more) == 0
    added = shard_stream.Journal.add

    def stop(journal: shard_stream.Journal, file: str, digest: str) -> None:
        added(journal, file, digest)
        if len(journal.done) == stops:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shard_stream.Journal, "add", stop)
        assert convert(run, to, tmp_path / "out", *more) == 130
    left = {path.name for path in (tmp_path / "out").glob("*")}
    assert left in (set(), {".writing-step_0000000", f".writing-step_0000000{shard_stream.JOURNAL}"})
    # a rename keeps a file's inode
    journal = next(path for path in tmp_path.rglob(f"*{shard_stream.JOURNAL}"))
    names = [json.loads(line)["file"] for line in journal.read_text().splitlines()[1:]]
    whole = {os.stat(journal.with_suffix("") / name).st_ino for name in names}
    assert len(whole) >= stops
    assert convert(run, to, tmp_path / "out", "--resume", *more) == 0
    written = {str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert whole <= {os.stat(path).st_ino for path in written.values()}
    straight = {str(path.relative_to(tmp_path / "straight")): path for path in (tmp_path / "straight").rglob("*") if path.is_file()}
    assert written.keys() == straight.keys()
    for name in written:
        assert written[name].read_bytes() == straight[name].read_bytes(), name
    assert not list(tmp_path.glob(".*"))


def test_a_stopped_conversion_of_another_source_begins_anew(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shard_stream.Journal, "add", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert convert(run, "hf", tmp_path / "out") == 130
    assert (tmp_path / ".out.partial").is_dir()
    shutil.copytree(run, tmp_path / "copy")
    assert convert(tmp_path / "copy", "hf", tmp_path / "out", "--resume") == 2
    assert "what is there is of another source or other settings: leave --resume out" in capsys.readouterr().err
    assert convert(tmp_path / "copy", "hf", tmp_path / "out") == 0
    assert not list(tmp_path.glob(".*"))
    assert convert(run, "hf", tmp_path / "new", "--resume") == 2
    assert "there is none: leave --resume out" in capsys.readouterr().err


def test_a_stopped_conversion_with_another_tokenizer_begins_anew(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each rank's file names the tokenizer, so files of two tokenizers must not meet in one output."""
    with monkeypatch.context() as patch:
        patch.setattr(shard_stream.Journal, "add", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert convert(run, "mindspeed-llm", tmp_path / "out") == 130
    make_tokenizer(tmp_path / "other")
    more = ["--tokenizer", str(tmp_path / "other")]
    assert convert(run, "mindspeed-llm", tmp_path / "out", "--resume", *more) == 2
    assert "what is there is of another source or other settings" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["hf", "native", "mindspeed-llm"])
def test_too_small_a_disk_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, to: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 10**6))
    assert convert(run, to, tmp_path / "out") == 2
    assert "its disk has 1.0 MB free; free space or choose another --output" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_shard_that_was_half_written_does_not_count_as_used_space(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written anew in the room that it has."""
    more = ["--max-shard-size", "60KB"]
    with monkeypatch.context() as patch:
        patch.setattr(shard_stream.Journal, "add", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert convert(run, "hf", tmp_path / "out", *more) == 130
    partial = tmp_path / ".out.partial"
    half = next(partial.glob("model-*.safetensors"))
    half.write_bytes(bytes(50 << 20))
    limit = 50 << 20

    def usage(path: Path) -> Usage:
        held = sum(each.stat().st_size for each in tmp_path.rglob("*") if each.is_file())
        return Usage(limit, held, max(limit - held, 0))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert convert(run, "hf", tmp_path / "out", "--resume", *more) == 0


@pytest.mark.parametrize("to", ["hf", "native", "mindspeed-llm"])
def test_a_source_that_differs_from_its_checksums_gives_nothing(
    run: Path, tmp_path: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "bad")
    path = tmp_path / "bad/step_0000000/weights/rank_00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    assert convert(tmp_path / "bad", to, tmp_path / "out") == 2
    assert "weights/rank_00000.safetensors does not match its checksum" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


@pytest.mark.parametrize(
    ("to", "more", "message"),
    [
        ("hf", ["--tp", "2"], "--tp 2: a hf output has no layout"),
        ("native", ["--pp", "2"], "--pp 2: a native output has no layout"),
        ("mindspeed-llm", ["--tp", "3"], "--tp 3 does not divide 2 key/value heads"),
        ("mindspeed-llm", ["--pp", "3"], "--pp 3 does not divide 2 layers"),
        ("mindspeed-llm", ["--tp", "-1"], "--tp is -1; expected at least 1"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(
    run: Path, tmp_path: Path, to: str, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(run, to, tmp_path / "out", *more) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), None])
def test_a_disk_that_fills_up_keeps_what_is_whole_for_the_next_try(
    run: Path, tmp_path: Path, stop: OSError | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, calls = torch_stream.write_torch, []

    def fails(*arguments: object) -> None:
        calls.append(arguments)
        if stop is not None and len(calls) == 2:
            raise stop
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("mindspeed_vita.checkpoint.megatron.write.write_torch", fails)
    assert convert(run, "mindspeed-llm", tmp_path / "out", "--tp", "2") == (2 if stop else 0)
    if stop is not None:
        said = capsys.readouterr().err
        assert "No space left on device; free space and run the same command again, which goes on from there" in said
        assert convert(run, "mindspeed-llm", tmp_path / "out", "--tp", "2") == 0
        assert len(calls) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("to", ["hf", "native", "mindspeed-llm"])
@pytest.mark.parametrize("call", ["fsync", "unlink"])
def test_what_fails_after_the_last_rename_does_not_deny_what_is_there(
    run: Path, tmp_path: Path, to: str, call: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    output = tmp_path / "in" / "out"
    place, parent = os if call == "fsync" else Path, output if to == "native" else output.parent
    real = getattr(place, call)

    def fails(what: int | Path, **named: bool) -> None:
        if isinstance(what, int):
            last = os.path.samestat(os.fstat(what), parent.stat())
        else:
            last = what.name.endswith(shard_stream.JOURNAL) and what.exists()
        if last:
            raise OSError(5, "Input/output error")
        real(what, **named)

    with monkeypatch.context() as patch:
        patch.setattr(place, call, fails)
        assert convert(run, to, output) == 2
    said = capsys.readouterr().err
    assert ("is whole, but a power failure could still undo it: " if call == "fsync" else "all is written, but ") in said
    assert "Input/output error" in said and "cannot" not in said.replace("cannot be removed", "") and "nothing" not in said
    assert main(["verify", str(run), str(output), "--report", str(tmp_path / "report.json")]) == 0
    assert len(list(tmp_path.rglob("*" + shard_stream.JOURNAL))) == (call == "unlink")


@pytest.mark.parametrize("tail", ['{"file": "b", "by', '{"file": "b", "bytes": 3, "xxh128": "11"}'], ids=["in a line", "before its end"])
def test_the_journal_survives_a_line_that_was_cut_off(tmp_path: Path, tail: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_bytes(b"xyz")
    journal = shard_stream.Journal(folder, {"of": 1})
    journal.begin()
    journal.add("a", "00")
    with journal.path.open("a") as file:
        file.write(tail)
    again = shard_stream.Journal(folder, {"of": 1})
    assert again.fits and again.done == {"a": "00"}
    again.begin()
    assert [json.loads(line) for line in again.path.read_text().splitlines()][1] == {"bytes": 3, "file": "a", "xxh128": "00"}
    again.add("c", "22")
    assert shard_stream.Journal(folder, {"of": 1}).done == {"a": "00", "c": "22"}
    (folder / "a").write_bytes(b"longer")
    assert shard_stream.Journal(folder, {"of": 1}).done == {"c": "22"}
    assert not shard_stream.Journal(folder, {"of": 2}).fits
    shutil.rmtree(folder)
    assert not shard_stream.Journal(folder, {"of": 1}).fits, "it has its final name, and the journal was left behind"


def test_a_table_too_small_for_its_tokenizer_is_refused_when_going_in(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(run, "hf", tmp_path / "hf") == 0
    config = json.loads((tmp_path / "hf/config.json").read_text())
    small = {name: tensor.clone() for name, tensor in SafetensorsFolder(tmp_path / "hf").items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        small[name] = small[name][:310]
    write_tensors(tmp_path / "hf/model.safetensors", list(small.items()), {"format": "pt"})
    (tmp_path / "hf/config.json").write_text(json.dumps({**config, "vocab_size": 310}))
    assert convert(tmp_path / "hf", "native", tmp_path / "out") == 2
    assert (
        "has 320 entries with the vision tokens, the embedding table 310 rows; name another one with --tokenizer" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()
