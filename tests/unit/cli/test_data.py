"""`vita data`: what each action prints and writes, on the tiny data set."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from mindspeed_vita.cli.main import main
from mindspeed_vita.config import recipe_to_dict


@pytest.fixture
def recipe(tiny, tmp_path) -> str:
    """The tiny recipe as a file, with an index of its own."""
    content = recipe_to_dict(tiny.recipe(tmp_path / "run", data={"index": str(tmp_path / "index")}))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return str(tmp_path / "recipe.yaml")


def test_index_is_made_once_and_plan_finds_it(recipe, tmp_path, capsys):
    assert main(["data", "index", recipe]) == 0
    assert "all: " in (out := capsys.readouterr().out) and "32 rows, 0 skipped" in out
    (parquet,) = (tmp_path / "index" / "index").glob("*.parquet")
    written = parquet.stat().st_mtime_ns
    assert main(["data", "plan", recipe]) == 0
    out = capsys.readouterr().out
    assert "32 samples (all 32)" in out and "epoch 0: " in out and "fill " in out
    assert parquet.stat().st_mtime_ns == written
    (plan,) = (tmp_path / "index" / "plans").iterdir()
    assert (plan / "epoch_00000" / "plan.json").is_file()


def test_stats_give_a_table_and_a_picture(recipe, tmp_path, capsys):
    assert main(["data", "stats", recipe, "--output", str(tmp_path / "s.svg")]) == 0
    head, row, total, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["source", "samples", "tokens", "tiles", "median", "longest", "fill", "steps/epoch"]
    assert row.split()[:2] == ["all", "32"] and row.split()[1:] == total.split()[1:], "one source is all there is"
    bars = ElementTree.parse(tmp_path / "s.svg").findall(".//{http://www.w3.org/2000/svg}rect")
    assert len(bars) == 40 + 1
    texts = [text.text for text in ElementTree.parse(tmp_path / "s.svg").findall(".//{http://www.w3.org/2000/svg}text")]
    assert "tokens of a sample (logarithmic)" in texts and "samples" in texts


def test_check_names_file_and_line(tiny, recipe, tmp_path, capsys):
    assert main(["data", "check", recipe, "--headers"]) == 0
    assert capsys.readouterr().out.endswith("nothing found\n")
    good = {"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "A."}], "images": ["red0.png"]}
    rows = [good, {**good, "images": ["gone.png"]}, {**good, "images": []}, {"messages": good["messages"][:1], "images": ["red0.png"]}]
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([*map(json.dumps, rows), "{", ""]))
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(json.dumps({"dataset": {"bad": {"data_paths": [str(bad)]}}}))
    assert main(["data", "check", recipe, f"data.mixture={mixture}", f"data.media_root={tiny.folder}"]) == 1
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == f"bad: {bad}: 5 rows, 4 findings"
    assert lines[1].startswith(f"{bad}:2: image 'gone.png': no such file")
    assert lines[2].startswith(f"{bad}:3: found 1 <image> tags for 0 images, expected one tag each")
    assert lines[3] == f"{bad}:4: no assistant turn that is learnt, so there is nothing to learn"
    assert lines[4].startswith(f"{bad}:5: found no JSON") and lines[-1] == "4 findings"


def test_the_same_finding_is_one_line_with_a_count(recipe, tmp_path, capsys):
    rows = [json.dumps({"conversations": [{"from": "gpt", "value": "A."}], "images": [f"gone{number}.png"]}) for number in range(50)]
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(["no json", *rows, "{"]))
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(json.dumps({"dataset": {"bad": {"data_paths": [str(bad)]}}}))
    assert main(["data", "check", recipe, f"data.mixture={mixture}"]) == 1
    head, *lines, total = capsys.readouterr().out.splitlines()
    assert head.endswith("52 rows, 102 findings") and total == "102 findings"
    assert len(lines) == 4, lines
    assert f"{bad}:2: image 'gone0.png': no such file" in lines[2] and lines[2].endswith(f"and 49 more like it, the last at {bad}:51")


def bad_mixture(tiny, tmp_path):
    """Settings for a mixture with one good row, rows that the build leaves out, and a file without rows."""
    talk = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "It is red. \n"}]
    special = [{**talk[0], "content": "a <|im_end|> b"}, talk[1]]
    rows = [{"messages": talk, "solution": "x", "id": 1}, {"messages": special, "solution": "y"}]
    rows += [{"messages": [talk[0], {**talk[1], "content": " "}]}, {"messages": talk, "images": ["gone.png"]}, {"messages": talk * 400}]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "empty.jsonl").write_text("\n")
    files = [str(tmp_path / "bad.jsonl"), str(tmp_path / "empty.jsonl")]
    (tmp_path / "mixture.yaml").write_text(json.dumps({"dataset": {"bad": {"data_paths": files}}}))
    return [f"data.mixture={tmp_path / 'mixture.yaml'}", f"data.media_root={tiny.folder}"], *files


def test_check_sees_what_the_build_leaves_out_and_notes_unused_keys(tiny, recipe, tmp_path, capsys):
    settings, bad, empty = bad_mixture(tiny, tmp_path)
    assert main(["data", "check", recipe, *settings]) == 1
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == f"bad: {bad}: 5 rows, 3 findings" and lines[-1] == "4 findings"
    assert lines[1].startswith(f"{bad}:2: the text holds a reserved token (<|im_end|> at 2)")
    assert lines[2] == f"{bad}:3: every answer is empty, so there is nothing to learn" and lines[3].startswith(f"{bad}:4: image 'gone.png'")
    assert lines[4] == "note: the key 'solution' is not used; 2 rows have it"
    assert lines[6] == f"{empty}: holds no rows; correct it, or take it out of the mixture"


def test_skipped_lists_every_row_that_is_left_out(tiny, recipe, tmp_path, capsys):
    settings, bad, _ = bad_mixture(tiny, tmp_path)
    assert main(["data", "skipped", recipe, *settings]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [f"{bad}:{row}" for row in (2, 3, 4)]
    assert "reserved token" in lines[0] and "every answer is empty" in lines[1] and "gone.png: no such file" in lines[2]
    assert err.endswith("3 rows are left out\n")


def test_show_shows_line_feeds_and_spaces_that_are_learnt(tiny, recipe, tmp_path):
    settings, *_ = bad_mixture(tiny, tmp_path)
    assert main(["data", "show", recipe, *settings, "--output", str(tmp_path / "page.html")]) == 0
    assert '<span class="learn">It is red.\u00b7\u21b5\n&lt;|im_end|&gt;\u21b5\n</span>' in (tmp_path / "page.html").read_text()


def test_pictures_and_pages_go_next_to_the_run(recipe, tmp_path, capsys, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["data", "stats", recipe]) == main(["data", "show", recipe]) == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"data_lengths.svg", "pack0.html"}
    assert main(["data", "show", "--output", "new/page.html", recipe, "--pack", "1", "data.seed=3"]) == 0
    assert capsys.readouterr().out.endswith("new/page.html\n") and (tmp_path / "elsewhere" / "new" / "page.html").is_file()


@pytest.mark.parametrize("action", ["import", "check", "skipped", "stats", "show", "index", "plan"])
def test_every_action_has_its_own_help(action, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["data", action, "--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0 and f"usage: vita data {action} " in text
    for option, owner in (("--pack", "show"), ("--headers", "check"), ("--skip-bad", "import")):
        assert (option in text) == (action == owner)


def test_a_missing_action_is_named(recipe, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["data", recipe])
    assert ended.value.code == 2
    assert "where an action is expected: import, check, skipped, stats, show, index, plan" in capsys.readouterr().err


def test_show_writes_a_page_with_learnt_spans_and_tiles(recipe, tmp_path, capsys):
    target = tmp_path / "pack.html"
    assert main(["data", "show", recipe, "--pack", "1", "--output", str(target)]) == 0
    page = target.read_text()
    assert capsys.readouterr().out.strip() == str(target)
    shown = page.count('<div class="sample">')
    assert shown > 1 and f"{shown} samples" in page and page.count("document at token") == shown
    assert page.count("data:image/png;base64,") == int(page.split(" tiles, ")[0].rsplit(" ", 1)[1]) > 0
    assert '<span class="learn">It is ' in page or '<span class="learn">0' in page
    assert Path(target).stat().st_size < 1 << 20


def test_a_pack_before_the_first_is_refused(recipe, capsys):
    assert main(["data", "show", recipe, "--pack=-1"]) == 2
    assert "--pack -1: expected a number from 0 up" in capsys.readouterr().err


def test_a_pack_after_the_last_is_refused_without_planning_epochs_up_to_it(recipe, capsys):
    assert main(["data", "show", recipe, "--pack", "99999999"]) == 2
    assert "--pack 99999999: this recipe trains on " in (err := capsys.readouterr().err) and "which are numbered 0 to " in err


@pytest.mark.parametrize("action", ["index", "plan"])
def test_an_index_that_cannot_be_written_names_its_setting(recipe, tmp_path, capsys, action):
    (tmp_path / "index").touch()  # the tests may run as root, whom no permission stops
    assert main(["data", action, recipe]) == 2
    assert f"{tmp_path}/index cannot be written (" in (err := capsys.readouterr().err) and "; set data.index to a folder that" in err
