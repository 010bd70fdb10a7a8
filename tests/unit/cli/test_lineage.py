"""Where weights come from: the record in each step and export, and `vita lineage`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from mindspeed_vita.checkpoint import lineage
from mindspeed_vita.cli.main import main
from mindspeed_vita.config import recipe_from_dict, recipe_to_dict
from mindspeed_vita.files.writing import write_json


@pytest.fixture(scope="module")
def history(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was continued with more steps, a second one from its weights, an export of that, and weights made from the export."""
    folder = tmp_path_factory.mktemp("lineage")

    def train(name: str, *overrides: str, **train: object) -> None:
        recipe = {**recipe_to_dict(tiny.recipe(folder / name, train=train)), "name": name}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        assert main(["train", str(folder / f"{name}.yaml"), *overrides]) == 0

    train("first", steps=2)
    assert main(["train", str(folder / "first.yaml"), "train.steps=3"]) == 0
    train("second", f"checkpoint.init_from={folder / 'first'}", steps=1)
    export = str(folder / "export")
    assert main(["convert", "--from", str(folder / "second"), "--to", "hf", "--output", export, "--dtype", "bf16", "--card"]) == 0
    assert main(["convert", "--from", export, "--to", "native", "--output", str(folder / "back")]) == 0
    return folder


def show(capsys: pytest.CaptureFixture[str], path: Path) -> list[str]:
    assert main(["lineage", str(path)]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_history_of_an_export_is_told(history, capsys):
    first = lineage.of_checkpoint(history / "first")
    second = lineage.of_checkpoint(history / "second")
    code = lineage.code_version()
    lines = show(capsys, history / "export")
    export = lineage.of_checkpoint(history / "export")
    assert lines == [
        f"hf (conversion), id {export.identity}, dtype bf16, code {code}",
        f"└─ second (training), step 1, id {second.identity}, recipe {second.recipe[:12]}, data {second.data[:12]}, code {code}",
        f"   └─ first (training), step 3, id {first.identity}, recipe {first.recipe[:12]}, data {first.data[:12]}, code {code}",
        f"         continued from step 2 by {code}; train.steps: 2 -> 3",
    ]
    assert "\n".join(lines) in (history / "export" / "README.md").read_text(), "the model card has it"
    assert [line[3:] for line in show(capsys, history / "back")[1:]] == lines, "and what is made from the export tells all of it"


def test_the_record_says_which_recipe_and_data_a_step_is_of(history, tiny, capsys):
    assert main(["lineage", str(history / "second"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    state = json.loads((history / "second" / "step_0000001" / "state.json").read_text())
    assert record["data"] == state["fingerprint"] and record["parents"][0]["step"] == 3
    moved = recipe_to_dict(tiny.recipe(history / "elsewhere", train={"steps": 3}))
    same = lineage.begun(recipe_from_dict({**moved, "name": "first"}), data="", start=None)
    assert same.recipe == record["parents"][0]["recipe"], "the places where files lie are not part of it"
    moved["train"]["lr"] = 0.5
    assert lineage.begun(recipe_from_dict({**moved, "name": "first"}), data="", start=None).recipe != same.recipe


def test_a_step_without_a_record_says_what_it_knows(history, tmp_path, capsys):
    shutil.copytree(history / "first" / "step_0000003", tmp_path / "step_0000003")
    sums = json.loads((tmp_path / "step_0000003" / "checksums.json").read_text())
    (tmp_path / "step_0000003" / lineage.LINEAGE).unlink()
    for table in [sums, *(value for value in sums.values() if isinstance(value, dict))]:
        table.pop(lineage.LINEAGE, None)
    (tmp_path / "step_0000003" / "checksums.json").write_text(json.dumps(sums))
    (line,) = show(capsys, tmp_path / "step_0000003")
    known = lineage.of_checkpoint(history / "first")
    assert line.startswith("first (unknown), step 3, id ") and f"data {known.data[:12]}" in line and line.endswith("code unknown")


@pytest.mark.parametrize("content", ["{", "[]", '{"made_by": "training"}', '{"made_by": "x", "name": "y", "settings": {}, "parents": [3]}'])
def test_a_damaged_record_is_named(tmp_path, capsys, content):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / lineage.LINEAGE).write_text(content)
    assert main(["lineage", str(tmp_path)]) == 2
    assert f"{tmp_path / lineage.LINEAGE}: " in capsys.readouterr().err


@pytest.mark.parametrize("generations", [lineage.GENERATIONS, lineage.GENERATIONS + 1, 400, 3000])
def test_a_history_without_end_is_one_message(tmp_path, capsys, generations):
    (tmp_path / "config.json").write_text("{}")
    record = '{"made_by": "training", "name": "x", "settings": {}'
    (tmp_path / lineage.LINEAGE).write_text(f'{record}, "parents": [' * (generations - 1) + record + "}" + "]}" * (generations - 1))
    for options in ([], ["--json"]):
        assert main(["lineage", str(tmp_path), *options]) == (2 if generations > lineage.GENERATIONS else 0)
        printed, said = capsys.readouterr()
        if generations > lineage.GENERATIONS:
            assert str(tmp_path / lineage.LINEAGE) in said and said.count("\n") == 1 and "; " in said
    assert (generations > lineage.GENERATIONS or '"made_by": "training"' in printed)


def test_a_record_of_others_cannot_write_lines_or_move_the_cursor(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    told = {"name": "a\n└─ mine (training)", "settings": {"x": "\x1b[2J"}, "changes": [{"step": 1, "code": "\r", "settings": {}}]}
    (tmp_path / lineage.LINEAGE).write_text(json.dumps({"made_by": "training", **told}))
    lines = show(capsys, tmp_path)
    assert len(lines) == 2 and all(line.isprintable() for line in lines)


def test_the_advice_about_a_damaged_record_holds_for_a_step_and_an_export(history, tmp_path, capsys):
    shutil.copytree(history / "first" / "step_0000003", tmp_path / "step_0000003")
    (tmp_path / "step_0000003" / lineage.LINEAGE).write_text("{")
    assert main(["lineage", str(tmp_path)]) == 2
    assert "; restore the step from a copy" in capsys.readouterr().err, "a step without the record is damaged, too"
    shutil.copytree(history / "export", tmp_path / "export")
    (tmp_path / "export" / lineage.LINEAGE).write_text("{")
    assert main(["lineage", str(tmp_path / "export")]) == 2 and "or remove it" in capsys.readouterr().err
    (tmp_path / "export" / lineage.LINEAGE).unlink()
    assert "(unknown)" in show(capsys, tmp_path / "export")[0]


def test_what_is_no_checkpoint_is_refused(tmp_path, capsys):
    assert main(["lineage", str(tmp_path / "none")]) == 2
    assert "none: no such folder" in capsys.readouterr().err
    assert main(["lineage", str(tmp_path)]) == 2
    assert "holds no whole checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["step", "export"])
def test_a_history_that_is_too_long_can_begin_anew(history, tmp_path, capsys, kind):
    source = tmp_path / "step_0000003" if kind == "step" else tmp_path / "export"
    shutil.copytree(history / "first" / source.name if kind == "step" else history / "export", source)
    record = lineage.Lineage(made_by="training", name="long", settings={})
    for _ in range(lineage.GENERATIONS - 1):
        record = lineage.Lineage(made_by="training", name="long", settings={}, parents=(record,))
    sum_of_record = write_json(source / lineage.LINEAGE, record.encode())
    sums = json.loads((source / "checksums.json").read_text()) if kind == "step" else {}
    if kind == "step":
        (table,) = sums.values()
        table[lineage.LINEAGE] = sum_of_record
        (source / "checksums.json").write_text(json.dumps(sums))
    convert = ["convert", "--from", str(source), "--to", "hf" if kind == "step" else "native", "--output", str(tmp_path / "made")]
    assert main(convert) == 2
    said = capsys.readouterr().err
    assert "has more than 200 generations" in said and "remove lineage.json from the copy" in said and said.count("\n") == 1
    assert not (tmp_path / "made").exists()
    (source / lineage.LINEAGE).unlink()
    if kind == "step":
        assert "also its entry in checksums.json" in said
        table.pop(lineage.LINEAGE)
        (source / "checksums.json").write_text(json.dumps(sums))
    assert main(convert) == 0
    assert "(unknown)" in show(capsys, tmp_path / "made")[-1]
