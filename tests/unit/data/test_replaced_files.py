"""A data file that changes while a run reads it is refused, with file and line."""

import json

import pytest

from mindspeed_vita.data.dataset import build_data


def test_a_file_replaced_during_a_run_is_refused_with_its_line(world, say):
    rows = [{"messages": say("A?", f"Yes {number}.")} for number in range(4)]
    data = world.build(rows)
    data.encode(0)
    path = world.folder / "data.jsonl"
    others = [{"messages": say("B?", f"Yes {number}.")} for number in range(4)]  # as many tokens, in as many bytes
    path.write_text("".join(json.dumps(row) + "\n" for row in others))
    message = r"data\.jsonl:2: the row is not the one that was indexed: the file changed since; put the indexed file back and resume"
    with pytest.raises(ValueError, match=message):
        data.encode(data.index.places.tolist().index(2))
    fresh = world.build()
    path.unlink()
    with pytest.raises(ValueError, match=r"data\.jsonl:\d: the row cannot be read \(No such file"):
        fresh.encode(0)


def test_columns_of_an_older_version_have_no_digests_and_are_compared_by_their_tokens(world, say):
    data = world.build([{"messages": say("A?", "Yes.")}])
    shapes = json.loads((data.folder / "columns.json").read_text())
    del shapes["digests"]
    (data.folder / "columns.json").write_text(json.dumps(shapes))
    (data.folder / "digests").unlink()
    old = build_data(world.config(), tokens_per_tile=4, tile_size=28, vocab_size=512)
    assert old.index.digest(0) is None and len(old.encode(0).tokens_T) == old.index.num_tokens[0]
    path = world.folder / "data.jsonl"
    path.write_text(path.read_text().replace("Yes.", "Y s."))
    with pytest.raises(ValueError, match=r"data\.jsonl:1: the row is not the one that was indexed"):
        old.encode(0)
