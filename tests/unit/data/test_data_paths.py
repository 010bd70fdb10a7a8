"""Globs, braces and folders in data_paths: the files they name, in natural order, and a refusal where they name none."""

import json

import pytest

from mindspeed_vita.data import data_paths
from mindspeed_vita.data.data_paths import expand_braces
from mindspeed_vita.data.mixture import load_mixture


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("a/part-10.jsonl", "a/part-2.jsonl", "a/part-1.jsonl", "a/deep/x.jsonl", "a/cup.jpg", "a/.hidden.jsonl", "b/one.tar",
                 "b/two.tar", "b/list.json", "vita_index/index/old.parquet", "a/vita_index/index/x.jsonl", "odd/[1]{a,b}.jsonl",
                 "a/.ipynb_checkpoints/x.jsonl", "texts/1.txt", "texts/2.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "none").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paths(folder, *entries, **options):
    (folder / "mixture.yaml").write_text(json.dumps({"dataset": {"x": {"data_paths": list(entries), **options}}}))
    (source,) = load_mixture(folder / "mixture.yaml")
    return list(source.paths)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("plain", ["plain"]),
        ("{b,a}.x", ["b.x", "a.x"]),
        ("{0,1}{a,b}", ["0a", "0b", "1a", "1b"]),
        ("x-{08..11}", ["x-08", "x-09", "x-10", "x-11"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{a,{1..2}}", ["a", "1", "2"]),
        ("{alone} {} a}b{", ["{alone} {} a}b{"]),
        ("{a,}", ["a", ""]),
    ],
)
def test_braces_are_expanded_as_a_shell_does(text, found):
    assert expand_braces(text) == found


@pytest.mark.parametrize("text", ["{0..99999999999}", "{0..9999}{0..9999}"])
def test_braces_are_bounded(text):
    with pytest.raises(ValueError, match=r"for more than 1,000,000 files; name a folder"):
        expand_braces(text)


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ("a/*.jsonl", ["a/part-1.jsonl", "a/part-2.jsonl", "a/part-10.jsonl"]),
        ("a/**/*.jsonl", ["a/deep/x.jsonl", "a/part-1.jsonl", "a/part-2.jsonl", "a/part-10.jsonl"]),
        ("a/part-{10,2}.jsonl", ["a/part-10.jsonl", "a/part-2.jsonl"]),
        ("a", ["a/deep/x.jsonl", "a/part-1.jsonl", "a/part-2.jsonl", "a/part-10.jsonl"]),
        ("a/part-[0-9].jsonl", ["a/part-1.jsonl", "a/part-2.jsonl"]),
        ("odd/[1]{a,b}.jsonl", ["odd/[1]{a,b}.jsonl"]),
        ("b/*.tar", ["b/one.tar", "b/two.tar"]),
    ],
)
def test_what_an_entry_names(folder, entry, found, tmp_path_factory, monkeypatch):
    assert paths(folder, entry) == found
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert paths(folder, entry) == [str(folder / name) for name in found], "from the folder of the mixture too"


def test_a_folder_with_a_format_stands_for_all_its_files(folder):
    assert paths(folder, "texts", format="json") == ["texts/1.txt", "texts/2.txt"]


@pytest.mark.parametrize("entry", ["c/*.jsonl", "none", "a/part-{3..4}.jsonl", "a/part-[5-9].jsonl"])
def test_what_names_nothing_is_refused(folder, entry):
    with pytest.raises(ValueError, match=r"found no file for x: (c/\*|none|a/part-3\.jsonl; x: a/part-4|a/part-\[5-9\]).*looked in"):
        paths(folder, entry)


def test_a_folder_of_several_formats_is_refused(folder):
    with pytest.raises(ValueError, match=r"dataset\.x\.data_paths: b: the folder holds files of several formats: json \(list\.json\), w"):
        paths(folder, "b")


def test_a_pattern_that_names_a_file_again_is_refused(folder):
    with pytest.raises(ValueError, match=r"'a/\*\.jsonl' names a/part-2\.jsonl once more; name each file once"):
        paths(folder, "a/part-2.jsonl", "a/*.jsonl")
    assert paths(folder, "a/part-2.jsonl", "a/part-2.jsonl") == ["a/part-2.jsonl"] * 2, "named twice by name, as ever"


def test_a_pattern_gives_a_file_of_another_suffix_away(folder):
    with pytest.raises(ValueError, match=r"a/cup\.jpg: files with the suffix '\.jpg' are not read"):
        paths(folder, "a/*")


def test_the_bound_is_one_that_a_mixture_may_reach():
    assert len(expand_braces("{000..999}")) == 1000 < data_paths.MOST_FILES
