"""Mixture YAML: the released format, entries that are off, and clear errors."""

import numpy as np
import pytest

from mindspeed_vita.data.mixture import SourceSpec, load_mixture

RELEASED = """
xlsx_sample_num: 5

dataset:

  LLaVA:
    ratio: 0
    data_paths:
      #- datasets/jsonl/pretrain.jsonl
      - datasets/jsonl/absent.jsonl

  OpenHermes:
    ratio: 1.0
    num: 300000
    data_paths:
      - datasets/jsonl/a.jsonl

  the_cauldron:
    ratio: 0.1
    data_paths:
      - datasets/jsonl/a.jsonl
      #- datasets/jsonl/absent.jsonl
      - datasets/jsonl/b.jsonl

  all_commented:
    ratio: 1.0
    data_paths:
      #- datasets/jsonl/absent.jsonl

  none_drawn:
    num: 0
    data_paths:
      - datasets/jsonl/absent.jsonl
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "datasets" / "jsonl").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "datasets" / "jsonl" / f"{name}.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, text):
    (folder / "mixture.yaml").write_text(text)
    return folder / "mixture.yaml"


def test_the_released_format_loads_unchanged(folder):
    hermes, cauldron = load_mixture(write(folder, RELEASED))
    assert hermes == SourceSpec(name="OpenHermes", ratio=1.0, num=300000, paths=("datasets/jsonl/a.jsonl",))
    assert cauldron == SourceSpec(
        name="the_cauldron", ratio=0.1, num=None, paths=("datasets/jsonl/a.jsonl", "datasets/jsonl/b.jsonl")
    )


def test_paths_are_found_beside_the_mixture_too(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    path = write(folder, RELEASED)
    assert load_mixture(path)[0].paths == (str(folder / "datasets/jsonl/a.jsonl"),)


def test_missing_files_of_entries_that_are_on_are_all_named(folder):
    text = "dataset: {x: {data_paths: [gone.jsonl, datasets/jsonl/a.jsonl]}, y: {data_paths: [lost.jsonl]}}"
    with pytest.raises(ValueError, match=r"found no file for x: gone\.jsonl; y: lost\.jsonl; looked in .*correct the path or set ratio: 0"):
        load_mixture(write(folder, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: {x: {ration: 1, data_paths: []}}", "dataset.x: found unknown keys ration; expected ratio, num, data_paths"),
        ("dataset: {x: {ratio: -1, data_paths: []}}", r"dataset.x.ratio: found -1, expected a number from 0 up"),
        ("dataset: {x: {ratio: .nan, data_paths: []}}", r"dataset.x.ratio: found nan"),
        ("dataset: {x: {num: 1.5, data_paths: []}}", r"dataset.x.num: found 1.5"),
        ("dataset: {x: {data_paths: a.jsonl}}", r"dataset.x.data_paths: found 'a.jsonl', expected a list"),
        ("dataset: {x: 3}", r"dataset.x: found 3"),
        ("dataset: {x: {ratio: 0, data_paths: [a]}}", "every entry is off"),
        ("sources: {}", "found no mapping 'dataset'"),
        ("dataset: {x: [", "is no YAML"),
        ("dataset:\n  x: {data_paths: [a]}\n  x: {ratio: 0}", "line 3: found the key 'x' again, first in line 2; keep one of them"),
        ("dataset: {x: {ratio: 1, ratio: 2, data_paths: []}}", "mixture.yaml: line 1: found the key 'ratio' again"),
        ('dataset: {"\\ud800": {data_paths: [a]}}', "the name holds half a character"),
        ('dataset: {x: {data_paths: ["\\udfff.jsonl"]}}', "data_paths: found .*udfff.jsonl', expected the path of a file"),
        ("dataset: {x: {data_paths: ['']}}", "data_paths: found '', expected the path of a file"),
    ],
)
def test_bad_mixtures_say_what_is_wrong(folder, text, message):
    with pytest.raises(ValueError, match=message):
        load_mixture(write(folder, text))


def test_a_missing_mixture_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"mixture '.*gone.yaml' cannot be read .* Correct data.mixture .of held-out data: eval.mixture."):
        load_mixture(tmp_path / "gone.yaml")


def test_paths_take_variables_and_only_entries_that_are_on_need_them(folder, monkeypatch):
    used = "used: {data_paths: ['${VITA_TEST_ROOT}/datasets/jsonl/a.jsonl']}"
    text = f"dataset: {{{used}, unused: {{ratio: 0, data_paths: ['${{VITA_TEST_UNSET}}/b.jsonl']}}}}"
    monkeypatch.setenv("VITA_TEST_ROOT", str(folder))
    assert [source.paths for source in load_mixture(write(folder, text))] == [(str(folder / "datasets/jsonl/a.jsonl"),)]
    monkeypatch.delenv("VITA_TEST_ROOT")
    with pytest.raises(ValueError, match="dataset.used: data_paths=.* needs the environment variable VITA_TEST_ROOT"):
        load_mixture(write(folder, text))


def spec(ratio=1.0, num=None, name="x"):
    return SourceSpec(name=name, ratio=ratio, num=num, paths=("p",))


def test_draws_are_balanced_shuffled_and_stable():
    rows = spec(2.5).draw(0, 10, seed=3)
    assert sorted(np.bincount(rows, minlength=10)) == [2] * 5 + [3] * 5
    assert np.array_equal(rows, spec(2.5).draw(0, 10, seed=3))
    assert not np.array_equal(rows, spec(2.5).draw(1, 10, seed=3)) and not np.array_equal(rows, spec(2.5).draw(0, 10, seed=4))
    assert len(set(spec(0.3).draw(0, 10, seed=3))) == 3
    sizes = [len(kind.draw(0, rows, seed=3)) for kind, rows in ((spec(1.0, num=4), 10), (spec(0.05), 10), (spec(), 0))]
    assert sizes == [4, 0, 0]


@pytest.mark.parametrize(
    "name, found", [("captions.csv", "files with the suffix '.csv' are not read"), ("rows", "a file without suffix is not read")]
)
def test_a_suffix_that_tells_no_format_is_refused_with_those_that_do(tmp_path, name, found):
    (tmp_path / name).touch()
    mixture = tmp_path / "m.yaml"
    mixture.write_text(f"dataset: {{x: {{data_paths: [{tmp_path / name}]}}}}")
    with pytest.raises(ValueError, match=rf"dataset.x.data_paths: .*{found}; expected .jsonl, .json, .*`vita data import` converts .csv"):
        load_mixture(mixture)
    mixture.write_text(f"dataset: {{x: {{data_paths: [{tmp_path / name}], format: json}}}}")
    assert load_mixture(mixture)[0].format == "json"


def test_suffixes_of_json_may_be_upper_case_or_compressed(tmp_path):
    for name in ("A.JSONL", "b.json.gz", "c.ndjson"):
        (tmp_path / name).touch()
        (tmp_path / "m.yaml").write_text(f"dataset: {{x: {{data_paths: [{tmp_path / name}]}}}}")
        assert load_mixture(tmp_path / "m.yaml")[0].paths


def test_no_mixture_is_not_the_working_directory():
    with pytest.raises(ValueError, match="data.mixture is empty; set it to a YAML file"):
        load_mixture("")
