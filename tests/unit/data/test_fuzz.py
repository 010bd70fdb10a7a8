"""Twenty thousand damaged rows, mixtures, shards and media: each is read, or refused by a message that names its place."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def fuzz_data(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import fuzz_data

    return fuzz_data


@pytest.mark.parametrize("part", ["rows", "mixtures", "containers", "media"])
def test_damaged_input_is_read_or_refused_with_its_place(fuzz_data, tmp_path, part):
    count = round(20_000 * fuzz_data.SHARES[part])
    counts, findings = fuzz_data.fuzz(part, count, tmp_path)
    assert not findings
    assert counts["read"] + counts["refused"] == count
    assert min(counts["read"], counts["refused"]) > count // 20, "cases of one outcome only show little"


def test_what_is_neither_read_nor_refused_by_place_is_a_finding(fuzz_data):
    def fails():
        raise KeyError("x")

    assert fuzz_data.guarded(fails, "a.jsonl:1")[0] == ("finding", "KeyError: 'x'")
    assert fuzz_data.guarded(lambda: int("x"), "a.jsonl:1")[0][0] == "finding", "the message names no place"
