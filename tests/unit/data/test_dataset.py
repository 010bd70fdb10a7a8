"""From files to packs: token, label and tile content of PackedBatch, with and without resets, good samples and bad ones."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mindspeed_vita.data.batch import IGNORE
from mindspeed_vita.data.budget import kind_of
from mindspeed_vita.data.dataset import build_data
from mindspeed_vita.hf.tiling import BACKGROUND, frame_tile, image_tiles, normalize

PACK_SETTINGS = [(resets, packing) for resets in (True, False) for packing in ("same_source", "cross_source")]


def mixed_rows(world, picture, clip, say):
    picture(60, 30).save(world.folder / "wide.png")
    picture(28, 28).save(world.folder / "small.png")
    clip(world.folder / "clip.mp4", 30, 10)
    return [
        {"messages": say("Hello there", "Hi.", "And 12 dogs?", "Yes.")},
        {"messages": say("<image>What is in the picture?", "A cat."), "images": ["wide.png"]},
        {"messages": say("<video>Describe the clip. <image>", "A red car."), "images": ["small.png"], "videos": ["clip.mp4"]},
        {"conversations": [{"from": "human", "value": "A?"}, {"from": "gpt", "value": "B."}]},
    ]


@pytest.mark.parametrize(("resets", "packing"), PACK_SETTINGS)
def test_documents_positions_and_padding(world, picture, clip, say, resets, packing):
    data = world.build(mixed_rows(world, picture, clip, say), resets=resets, packing=packing)
    assert data.num_packs(0) == 1
    pack = data[0]
    used = int(pack.sample_cu[-1])
    assert pack.sample_cu.tolist() == np.concatenate([[0], np.cumsum(data.index.num_tokens[pack.sample_ids])]).tolist()
    assert pack.cu_seqlens.tolist() == [*(pack.sample_cu.tolist() if resets else [0, used]), 256]
    for start, stop in zip(pack.cu_seqlens[:-1], pack.cu_seqlens[1:]):
        assert pack.positions_T[start:stop].tolist() == list(range(stop - start))
    assert (pack.labels_T[used:] == IGNORE).all() and (pack.weights_T[used:] == 0).all()
    assert (pack.tokens_T[used:] == data.tokenizer.convert_tokens_to_ids("<|endoftext|>")).all()
    assert torch.equal(pack.weights_T, (pack.labels_T != IGNORE).float())
    assert pack.cp_plan.piece_bounds.tolist() == pack.cu_seqlens.tolist()
    assert (pack.tokens_T.dtype, pack.tiles_NCHW.dtype, pack.weights_T.dtype) == (torch.int64, torch.uint8, torch.float32)


@pytest.mark.parametrize("resets", [True, False])
def test_labels_at_every_turn_seam_and_every_document_seam(world, picture, clip, say, resets):
    """The label at t is token t + 1 of the same sample, and only inside answers, their end token and the line feed after it."""
    data = world.build(mixed_rows(world, picture, clip, say), resets=resets)
    pack = data[0]
    start, end, line_feed = (data.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>", "Ċ"))
    assistant = data.tokenizer("assistant", add_special_tokens=False).input_ids
    for first, stop in zip(pack.sample_cu[:-1].tolist(), pack.sample_cu[1:].tolist()):
        tokens, labels = pack.tokens_T[first:stop].tolist(), pack.labels_T[first:stop].tolist()
        assert labels[-1] == IGNORE, "the last token of a sample must not predict the next sample"
        turns = [place for place, token in enumerate(tokens) if token == start] + [len(tokens)]
        for opens, closes in zip(turns, turns[1:]):
            assert tokens[closes - 2 : closes] == [end, line_feed]
            header = [start, *assistant, line_feed]
            is_answer = tokens[opens : opens + len(header)] == header
            for place in range(opens, closes):
                learnt = is_answer and opens + len(header) - 1 <= place < closes - 1
                assert labels[place] == (tokens[place + 1] if learnt else IGNORE), (place, opens, closes)


def test_tiles_stand_in_tag_order_at_their_tokens(world, picture, clip, say):
    data = world.build(mixed_rows(world, picture, clip, say), packing="cross_source")
    pack = data[0]
    contexts = data.tokenizer.convert_tokens_to_ids(["<IMG_CONTEXT>", "<VID_CONTEXT>", "<PATCH_CONTEXT>"])
    covered = (pack.tile_first_token[:, None] + torch.arange(4)).reshape(-1)
    assert sorted(covered.tolist()) == torch.isin(pack.tokens_T, torch.tensor(contexts)).nonzero().view(-1).tolist()
    assert torch.equal(pack.tile_first_token, pack.tile_first_token.sort().values)
    mixed = pack.sample_ids.tolist().index(2)
    own = [place for place, token in enumerate(pack.tile_first_token) if pack.sample_cu[mixed] <= token < pack.sample_cu[mixed + 1]]
    kinds = [int(pack.tokens_T[pack.tile_first_token[place]]) for place in own]
    assert kinds == [contexts[1]] * 3 + [contexts[0]], "the video's frames come first, as its tag does"
    levels = [int(pack.tiles_NCHW[place, 0, 14, 14]) for place in own[:3]]
    assert all(abs(level - 40 * second) <= 3 for second, level in enumerate(levels)), levels
    assert np.array_equal(pack.tiles_NCHW[own[3]].numpy(), frame_tile(picture(28, 28), tile_size=28))
    wide = pack.sample_ids.tolist().index(1)
    starts = [place for place, token in enumerate(pack.tile_first_token) if pack.sample_cu[wide] <= token < pack.sample_cu[wide + 1]]
    assert np.array_equal(pack.tiles_NCHW[starts].numpy(), image_tiles(picture(60, 30), tile_size=28)[0])


@pytest.mark.parametrize("group_size", [2, 3, 50])
def test_ranks_decode_only_their_own_tiles_and_together_all(world, picture, clip, say, group_size, monkeypatch):
    data = world.build(mixed_rows(world, picture, clip, say))
    whole = data[0]
    parts = [data.pack(0, group_rank=rank, group_size=group_size) for rank in range(group_size)]
    assert torch.equal(torch.cat([part.tiles_NCHW for part in parts]), whole.tiles_NCHW)
    assert [tile for part in parts for tile in part.tile_range] == list(range(len(whole.tile_first_token)))
    assert all(torch.equal(part.tokens_T, whole.tokens_T) and torch.equal(part.labels_T, whole.labels_T) for part in parts)
    assert all(part.tiles_NCHW.shape[1:] == (3, 28, 28) for part in parts)
    if group_size == 50:
        assert min(len(part.tiles_NCHW) for part in parts) == 0


def test_text_only_pack_has_no_tiles(world, say):
    pack = world.build([{"messages": say("A?", "B.")}])[0]
    assert pack.tiles_NCHW.shape == (0, 3, 28, 28) and len(pack.tile_first_token) == 0 and pack.tile_range == range(0)


def test_a_full_pack_has_no_padding_document(world, say):
    rows = [{"messages": say("A?" + "!" * extra, "B.")} for extra in range(2)]
    length = max(int(n) for n in world.build(rows).index.num_tokens if n % 2 == 0)
    data = world.build(rows, seq_length=length)
    bounds = [data[number].cu_seqlens.tolist() for number in range(data.num_packs(0))]
    assert [0, length] in bounds


def test_a_truncated_picture_is_masked_in_place(world, picture, say):
    picture(300, 200).save(world.folder / "cut.png")
    whole = (world.folder / "cut.png").read_bytes()
    rows = [{"messages": say("<image>What?", "A cat."), "images": ["cut.png"]}, {"messages": say("A?", "B.")}]
    good = world.build(rows)[0]
    (world.folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    data = world.build(rows)
    pack = data[0]
    assert not data.skipped, "the header is fine, so the sample is indexed"
    assert torch.equal(pack.tokens_T, good.tokens_T) and torch.equal(pack.tile_first_token, good.tile_first_token)
    bad = pack.sample_ids.tolist().index(0)
    span = slice(int(pack.sample_cu[bad]), int(pack.sample_cu[bad + 1]))
    assert pack.failed.tolist() == [sample == 0 for sample in pack.sample_ids]
    assert (pack.labels_T[span] == IGNORE).all() and (pack.weights_T[span] == 0).all() and (pack.labels_T != IGNORE).any()
    assert (pack.tiles_NCHW == torch.tensor(BACKGROUND, dtype=torch.uint8).view(1, 3, 1, 1)).all()
    (failure,) = pack.failures
    assert (failure.source, failure.sample_id, failure.path) == ("only", 0, "cut.png") and "cannot be read as a picture" in failure.reason


def test_a_picture_that_vanishes_after_indexing_is_masked(world, picture, say):
    picture(28, 28).save(world.folder / "p.png")
    data = world.build([{"messages": say("<image>?", "A."), "images": ["p.png"]}])
    (world.folder / "p.png").unlink()
    assert data[0].failed.tolist() == [True] and "no such file" in data[0].failures[0].reason


def test_every_rank_agrees_after_the_failures_are_shared(world, picture, say):
    """A folder with one broken frame fails only on the rank that decodes it; with_failed makes the ranks equal."""
    (world.folder / "frames").mkdir()
    for number in range(6):
        picture(40, 30).save(world.folder / "frames" / f"{number}.png")
    (world.folder / "frames" / "4.png").write_bytes(b"no picture")
    data = world.build([{"messages": say("<video>?", "A."), "videos": ["frames"]}])
    parts = [data.pack(0, group_rank=rank, group_size=2) for rank in range(2)]
    assert [part.failed.tolist() for part in parts] == [[False], [True]]
    shared = [part.with_failed(torch.tensor([True])) for part in parts]
    assert torch.equal(torch.cat([part.tiles_NCHW for part in shared]), data[0].tiles_NCHW)
    assert all(torch.equal(part.labels_T, data[0].labels_T) for part in shared)


def skipped_reasons(data):
    return {item.where.rpartition(":")[2]: item.reason for item in data.skipped}


def test_samples_that_headers_show_to_be_bad_are_skipped_with_their_reason(world, picture, say):
    picture(28, 28).save(world.folder / "p.png")
    (world.folder / "text.png").write_text("no picture")
    (world.folder / "empty").mkdir()
    (world.folder / "bad.mp4").write_bytes(b"\0" * 100)
    rows = [
        {"messages": say("Fine", "Yes")},
        {"messages": say("<image>", "A."), "images": ["missing.png"]},
        {"messages": say("<image> <image>", "A."), "images": ["p.png"]},
        {"messages": say("One <image>", "A."), "images": ["p.png"] * 2},
        {"messages": say("<image>", "A."), "images": ["text.png"]},
        {"messages": say("<video>", "A."), "videos": ["bad.mp4"]},
        {"messages": say("<video>", "A."), "videos": ["empty"]},
        {"messages": say("Only a question")},
        {"messages": say("<IMG_CONTEXT>", "A.")},
        {"messages": say("<image>" * 3, "A."), "images": ["p.png"] * 3},
        {"messages": say("<image>", "A."), "images": ["p.png", None]},
        {"messages": say("No tag", "A."), "images": None, "videos": [None]},
    ]
    data = world.build(rows, max_images=2)
    reasons = skipped_reasons(data)
    assert len(data.index) == 1 and data.num_samples == 1 and len(reasons) == 11
    expected = {
        "2": "missing.png: no such file",
        "3": "found 2 <image> tags for 1 images",
        "4": "found 1 <image> tags for 2 images",
        "5": "cannot be read as a picture",
        "6": "bad.mp4: cannot be read as a video",
        "7": "folder without",
        "8": "no assistant turn",
        "9": "reserved token",
        "10": "found 3 pictures, data.max_images allows 2",
        "11": "entry 2 of images is null or empty",
        "12": "entry 1 of videos is null or empty",
    }
    for line, text in expected.items():
        assert text in reasons[line], (line, reasons[line])
    assert "skipped 11" in data.describe()


def test_media_cannot_leave_the_root(world, picture, say, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    picture(28, 28).save(outside / "secret.png")
    (world.folder / "link.png").symlink_to(outside / "secret.png")
    (world.folder / "inside").mkdir()
    picture(28, 28).save(world.folder / "inside" / "p.png")
    (world.folder / "frames").mkdir()
    picture(28, 28).save(world.folder / "frames" / "0.png")
    (world.folder / "frames" / "1.png").symlink_to(outside / "secret.png")
    inside = ["inside/../inside/p.png", str(world.folder / "inside" / "p.png")]
    paths = [f"../{outside.name}/secret.png", str(outside / "secret.png"), "link.png", *inside]
    rows = [{"messages": say("<image>", "A."), "images": [path]} for path in paths]
    data = world.build([*rows, {"messages": say("<video>", "A."), "videos": ["frames"]}])
    outside_reasons = [reason for reason in skipped_reasons(data).values() if "outside the media root" in reason]
    assert len(outside_reasons) == 3 and len(data.index) == 3
    number = next(n for n in range(data.num_packs(0)) if 2 in data.samples_of(n))
    assert any("outside the media root" in failure.reason for failure in data[number].failures)


def test_a_source_without_a_usable_sample_stops_the_run(world, say):
    with pytest.raises(ValueError, match=r"source 'only' .* has no usable sample: .*data\.jsonl \(0 rows\): no rows are drawn"):
        world.build([])
    good = world.rows("good.jsonl", [{"messages": say("A?", "B.")}])
    gone = world.rows("gone.jsonl", [{"messages": say("<image>", "A."), "images": [f"{n}.png"]} for n in range(3)])
    mute = world.rows("mute.jsonl", [{"messages": say("Only a question")}])
    world.mixture(good={"data_paths": [good]}, bad={"data_paths": [gone, mute]})
    message = (
        r"source 'bad' .*gone\.jsonl \(3 rows\), .*mute\.jsonl \(1 row\): all were skipped: 4 \(3 x no such file.*1 x no assistant turn"
    )
    with pytest.raises(ValueError, match=message + ".*set its ratio to 0"):
        world.build()
    world.mixture(good={"data_paths": [good]}, bad={"data_paths": [gone, good]}, off={"data_paths": [gone], "ratio": 0})
    assert world.build().num_samples == 2


def test_too_long_video_gets_fewer_frames(world, clip, say):
    clip(world.folder / "clip.mp4", 60, 10)
    rows = [{"messages": say("<video>Describe the clip.", "A car."), "videos": ["clip.mp4"]}]
    full = world.build(rows, seq_length=512)
    tight = world.build(rows, seq_length=50)
    assert full.index.num_tiles.tolist() == [6] and tight.index.num_tiles.tolist() == [3] and not tight.skipped
    levels = [int(tile[0, 14, 14]) for tile in tight[0].tiles_NCHW]
    assert all(abs(level - 4 * number) <= 4 for level, number in zip(levels, (0, 15, 30))), "spread over the clip, not cut off"


def test_too_large_picture_gets_fewer_tiles_and_too_long_talk_fewer_turns(world, picture, say):
    picture(120, 90).save(world.folder / "p.png")
    rows = [{"messages": say("<image>What?", "A cat."), "images": ["p.png"]}]
    assert world.build(rows).index.num_tiles.tolist() == [13] and "13 tiles" in world.build(rows).describe()
    tight = world.build(rows, seq_length=64)
    assert 1 < tight.index.num_tiles[0] < 13 and tight.index.num_tokens[0] <= 64
    long_talk = say(*["<image>Again?", "Yes."] * 6)
    cut = world.build([{"messages": long_talk, "images": ["p.png"] * 6}], seq_length=128)
    assert cut.index.num_messages[0] % 2 == 0 and 2 < cut.index.num_messages[0] < 12 and not cut.skipped
    assert len(cut.index.grids(0)) == cut.index.num_messages[0] // 2 and cut.index.num_tokens[0] <= 128
    assert len(cut[0].tile_first_token) == cut.index.num_tiles[0]
    none = world.build([*rows, {"messages": say("x " * 400, "A.")}], seq_length=64)
    assert "does not fit a pack of 64 tokens" in none.skipped[0].reason


def test_settings_that_cannot_work_are_refused(world, say):
    rows = [{"messages": say("A?", "B.")}]
    with pytest.raises(ValueError, match="seq_length=255 is not a multiple of 2"):
        world.build(rows, seq_length=255)
    with pytest.raises(ValueError, match="media_root='/nowhere' is no folder"):
        world.build(rows, media_root="/nowhere")
    with pytest.raises(ValueError, match="data.template='llama9' is unknown; expected one of qwen2"):
        world.build(rows, template="llama9")


def test_fingerprint_follows_content_and_settings_and_nothing_else(world, say, tmp_path_factory):
    rows = [{"messages": say("A?", "B.")}, {"messages": say("C?", "D.")}]
    base = world.build(rows).fingerprint
    assert world.build(rows, num_workers=3, quarantine="elsewhere.jsonl").fingerprint == base
    changed = [
        world.build(rows, seed=7),
        world.build(rows, resets=False),
        world.build(rows, seq_length=512),
        world.build(rows, max_tiles=6),
        world.build([rows[1], rows[0]]),
        world.build([{"messages": say("A?", "C.")}, rows[1]]),
    ]
    assert len({base, *(data.fingerprint for data in changed)}) == 7


def test_the_vocabulary_must_fit_the_model(world, say):
    world.build([{"messages": say("A?", "B.")}])
    with pytest.raises(ValueError, match=r"has \d+ entries, the model only .*vocab_size=300 rows"):
        build_data(world.config(), tokens_per_tile=4, tile_size=28, vocab_size=300)


def test_ratio_above_one_repeats_and_below_one_draws_a_part(world, say):
    path = world.rows("a.jsonl", [{"messages": say(f"{n}?", "B.")} for n in range(10)])
    twice, half = {"ratio": 2.5, "data_paths": [path]}, {"ratio": 0.5, "num": 3, "data_paths": [path]}
    world.mixture(twice=twice, half=half, off={"ratio": 0, "data_paths": ["x"]})
    data = world.build()
    drawn = [int(sample) for number in range(data.num_packs(0)) for sample in data.samples_of(number)]
    assert data.num_samples == len(drawn) == 28 and data.source_names == ("twice", "half")
    assert sorted(drawn.count(sample) for sample in range(10)) == [2] * 5 + [3] * 5
    assert len({sample for sample in drawn if sample >= 10}) == 3


def test_rows_of_a_group_share_a_pack(world, say):
    answers = [("good", "bad, and far longer " * (number % 4 + 1)) for number in range(9)]
    pairs = [{"messages": say(f"{number}?", answer)} for number, both in enumerate(answers) for answer in both]
    one, two = world.rows("a.jsonl", pairs), world.rows("b.jsonl", pairs[:6])
    pairs[7] = {"messages": say("<image>What?", "A cat."), "images": ["gone.png"]}
    world.rows("a.jsonl", pairs)
    (world.folder / "b.jsonl").write_text((world.folder / "b.jsonl").read_text().replace("\n", "\n\n"))  # empty lines are no rows
    world.mixture(a={"data_paths": [one]}, b={"ratio": 2, "num": 4, "data_paths": [two]})
    data = world.build(group=2, packing="cross_source")
    rows = [(source, place - 1 if source == 0 else (place - 1) // 2) for source, place in zip(data.index.source_ids, data.index.places)]
    together, alone = [], []
    for number in range(data.num_packs(0)):
        left = [rows[sample] for sample in data.samples_of(number)]
        assert data[number].sample_cu[-1] <= 256
        while left:
            source, row = left.pop(0)
            assert row % 2 == 0, "the first of a pair comes first"
            if left[:1] == [(source, row + 1)]:
                together.append((source, row))
                left.pop(0)
            else:
                alone.append((source, row))
    assert alone == [(0, 6)], "the other one of this pair was skipped"
    assert sorted(pair for pair in together if pair[0] == 0) == [(0, row) for row in range(0, 18, 2) if row != 6]
    assert len([pair for pair in together if pair[0] == 1]) == 4 and len({pair for pair in together if pair[0] == 1}) == 3
    assert int(data.index.num_tokens.max()) <= 128, "each row has half a pack"
    assert data.fingerprint != world.build(packing="cross_source").fingerprint


def test_a_file_without_whole_groups_is_refused(world, say):
    with pytest.raises(ValueError, match=r"data.jsonl has 3 rows, and data.group=2 takes 2 consecutive ones together: complete the last"):
        world.build([{"messages": say("A?", "B.")}] * 3, group=2)


def test_gzip_array_and_plain_rows_give_the_same_packs(world, say):
    import gzip

    rows = [{"messages": say(f"{n}?", "B.")} for n in range(5)]
    plain = world.build(rows)
    (world.folder / "b.json").write_text(json.dumps(rows, indent=1))
    (world.folder / "c.jsonl.gz").write_bytes(gzip.compress((world.folder / "data.jsonl").read_bytes()))
    for name in ("b.json", "c.jsonl.gz"):
        world.mixture(only={"data_paths": [str(world.folder / name)]})
        assert torch.equal(world.build()[0].tokens_T, plain[0].tokens_T)


@pytest.mark.parametrize(("width", "height", "tokens"), [(640, 480, 3357), (480, 640, 3358), (448, 448, 258)])
def test_full_size_tiles_reach_the_pack_as_published(world, picture, say, width, height, tokens):
    golden = json.loads((Path(__file__).parents[2] / "golden" / "data" / "pictures.json").read_text())["pictures"]
    case = next(case for case in golden if (case["width"], case["height"]) == (width, height))
    picture(width, height).save(world.folder / "p.png")
    world.mixture(only={"data_paths": [world.rows("d.jsonl", [{"messages": say("<image>", "A."), "images": ["p.png"]}])]})
    data = build_data(world.config(seq_length=4096), tokens_per_tile=256, tile_size=448, vocab_size=512)
    pack = data[0]
    contexts = torch.tensor(data.tokenizer.convert_tokens_to_ids(["<IMG_CONTEXT>", "<PATCH_CONTEXT>"]))
    assert torch.isin(pack.tokens_T, contexts).sum() == 256 * len(pack.tile_first_token) == 256 * case["num_tiles"]
    text = len(data.tokenizer("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\nA.<|im_end|>\n").input_ids)
    assert int(data.index.num_tokens[0]) == text + tokens
    normalised = np.ascontiguousarray(normalize(pack.tiles_NCHW.numpy()), dtype="<f4")
    assert hashlib.sha256(normalised.tobytes()).hexdigest() == case["tiles_sha256"]


def test_a_reader_that_is_not_installed_is_refused_before_anything_is_read(world, say, monkeypatch):
    monkeypatch.setattr("mindspeed_vita.data.media.readers.find_spec", lambda name: None)
    world.build([{"messages": say("A?", "B.")}])
    for reader in ("decord", "torchcodec"):
        with pytest.raises(ValueError, match=f"data.video_reader is {reader}, which is not installed here; install it"):
            world.build([{"messages": say("A?", "B.")}], video_reader=reader, index=str(world.folder / reader))
        assert not (world.folder / reader).exists()


def test_the_kind_of_a_reason_has_no_half_of_a_bracket():
    kinds = ["cut.jpg: cannot be read as a picture (OSError: Truncated File Read)", "a.jpg: (x): 3 tiles (most: 2)", "b: 12 bytes (of 20)"]
    assert [kind_of(reason) for reason in kinds] == ["Truncated File Read", "#", "## bytes (of ##)"]
