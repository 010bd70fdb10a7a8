"""The same rows in JSONL, Parquet and tar give the same tokens and labels; what is not learnt has no label."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mindspeed_vita.data.batch import IGNORE

ROWS = [
    {"system": "Be brief.", "query": "A cat?", "response": "Yes."},
    {
        "messages": [
            {"role": "user", "content": "A?"},
            {"role": "assistant", "content": "No.", "loss": False},
            {"role": "user", "content": "B?"},
            {"role": "assistant", "content": "Dogs.", "loss": True},
        ]
    },
    {"instruction": "Describe", "input": "the clip", "output": "A red car."},
    {"text": "A red car drives by, then stops."},
    {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "A?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "B"}]},
        ]
    },
]


def write(world, kind, row):
    path = world.folder / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text(json.dumps(row) + "\n")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        content = json.dumps(row).encode()
        with tarfile.open(path, "w") as shard:
            info = tarfile.TarInfo("one.json")
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    world.mixture(only={"ratio": 1, "data_paths": [str(path)]})
    return world.build()


def learnt(data, tokenizer, sample=0):
    """(tokens of a sample, text that is learnt in it)."""
    encoded = data.encode(sample)
    labels = encoded.labels_T
    return encoded.tokens_T, tokenizer.decode(labels[labels != IGNORE].tolist())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: next(iter(row)))
def test_a_row_means_the_same_in_every_kind_of_file(world, row):
    found = [write(world, kind, row).encode(0) for kind in ("jsonl", "parquet", "tar")]
    for other in found[1:]:
        assert np.array_equal(other.tokens_T, found[0].tokens_T) and np.array_equal(other.labels_T, found[0].labels_T)


def test_what_is_learnt_is_what_the_row_says(world, tokenizer):
    data = world.build(ROWS)
    assert not data.skipped
    text = [learnt(data, tokenizer, sample)[1] for sample in range(len(ROWS))]
    assert text[0] == "Yes.<|im_end|>\n" and text[1] == "Dogs.<|im_end|>\n" and text[2] == "A red car.<|im_end|>\n"
    assert "Be brief." in tokenizer.decode(data.encode(0).tokens_T) and "No." in tokenizer.decode(data.encode(1).tokens_T)
    tokens = data.encode(3).tokens_T
    assert np.array_equal(data.encode(3).labels_T[:-1], tokens[1:]), "every token of a document but the first, which nothing predicts"
    assert tokenizer.decode(tokens) == ROWS[3]["text"] + "<|endoftext|>"
    assert data.encode(4).tokens_T.tolist() == [5, 6, 7, 8] and data.encode(4).labels_T.tolist() == [IGNORE, 7, 8, IGNORE]


def test_frames_in_a_list_are_the_frames_of_a_folder(world, picture, say):
    (world.folder / "f").mkdir()
    for number in (1, 2, 10):
        picture(28 + number, 28).save(world.folder / "f" / f"{number}.png")
    files = [f"f/{number}.png" for number in (1, 2, 10)]
    data = world.build(
        [
            {"messages": say("<video>", "A."), "videos": ["f"]},
            {"messages": say("<video>", "A."), "videos": [files]},
            {"messages": say("<video>", "A."), "videos": [[*files, "f/gone.png"]]},
        ]
    )
    assert [item.reason for item in data.skipped] == ["f/gone.png: no such file below " + str(world.folder)]
    assert np.array_equal(data.encode(0).tokens_T, data.encode(1).tokens_T)
    pack = data[0]
    tiles = pack.tiles_NCHW.numpy()
    assert len(tiles) == 6 and np.array_equal(tiles[:3], tiles[3:]) and not pack.failures
    (world.folder / "f" / "2.png").write_bytes(b"damaged")
    failures = {failure.sample_id: failure.path for failure in data[0].failures}
    assert failures == {0: "f", 1: str(world.folder / "f" / "2.png")}, "of a list, the frame is named"


BOXED = {
    "messages": [{"role": "user", "content": "<image>Where?"}, {"role": "assistant", "content": "<bbox>"}],
    "images": ["p.png"],
    "objects": {"ref": [], "bbox": [[5, 10, 25, 40]]},
}


def test_boxes_are_measured_by_the_picture_and_learnt(world, picture, tokenizer):
    picture(50, 40).save(world.folder / "p.png")
    data = world.build([BOXED])
    assert learnt(data, tokenizer)[1] == "<box>[[100, 250, 500, 1000]]</box><|im_end|>\n"
    picture(20, 40).save(world.folder / "p.png")
    with pytest.raises(ValueError, match="lies outside the picture"):
        world.build([BOXED], index=str(world.folder / "again"))


def test_a_picture_of_boxes_that_vanished_masks_its_sample(world, picture):
    picture(50, 40).save(world.folder / "p.png")
    data = world.build([BOXED])
    count = len(data.encode(0).tokens_T)
    (world.folder / "p.png").unlink()
    encoded = data.encode(0)
    assert len(encoded.tokens_T) == count and (encoded.labels_T == IGNORE).all()
    assert len(data[0].failures) == 1


def test_a_picture_of_boxes_that_has_another_size_is_named(world, picture):
    picture(50, 40).save(world.folder / "p.png")
    data = world.build([BOXED])
    picture(500, 400).save(world.folder / "p.png")
    with pytest.raises(ValueError, match=r"data\.jsonl:1: gives .* tokens, had .*: a picture that boxes are measured by changed, or"):
        data.encode(0)


def test_boxes_and_pictures_in_a_shard_are_those_of_a_file(world, picture):
    picture(50, 40).save(world.folder / "p.png")
    expected = world.build([BOXED]).encode(0)
    row = json.dumps({**BOXED, "images": ["p.png"], "id": 7}).encode()
    with tarfile.open(world.folder / "rows.tar", "w") as shard:
        for name, content in (("k.png", (world.folder / "p.png").read_bytes()), ("k.json", row), ("k.txt", b"not the caption")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    (world.folder / "p.png").unlink()
    world.mixture(only={"ratio": 1, "data_paths": [str(world.folder / "rows.tar")]})
    data = world.build()
    found = data.encode(0)
    assert np.array_equal(found.tokens_T, expected.tokens_T) and np.array_equal(found.labels_T, expected.labels_T)
    assert not data[0].failures


@pytest.mark.parametrize("text", ["a <|im_end|> b", "<|endoftext|>", "the <img> tag", "<VID_CONTEXT>"])
def test_special_tokens_in_a_turn_are_refused_and_boxes_are_not(world, say, text):
    boxes = {"messages": say("<ref>cup</ref> <box>[[1, 2]]</box>", "A.")}
    data = world.build([{"messages": say(text, "A.")}, boxes, {"text": "A. " + text}])
    assert len(data.skipped) == 2 and all("the text holds a reserved token" in item.reason for item in data.skipped)


def test_answers_without_content_and_foreign_tokens_are_skipped(world, say):
    rows = [
        {"messages": say("A?", "B.")},
        {"messages": say("A?", " \n")},
        {"messages": [*say("A?"), {"role": "assistant", "content": "B", "loss": False}]},
        {"input_ids": [1, 99999], "labels": [1, 99999]},
        {"input_ids": [1, 2], "labels": [-100, -100]},
    ]
    reasons = [item.reason for item in world.build(rows).skipped]
    assert ["every answer is empty" in reasons[0], "no assistant turn that is learnt" in reasons[1]] == [True, True]
    assert "found the token 99999" in reasons[2] and "nothing to learn" in reasons[3]
