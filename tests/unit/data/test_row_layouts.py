"""Rows as other trainers document them: each means the plain row beside it, or is refused by the name of its key."""

import json
import random

import pytest

from mindspeed_vita.data.sample import parse_sample
from mindspeed_vita.data.schema import USED_FIELDS, plain_row

SYSTEM, ASKED, SAID = "Be brief.", "What is it?", "A cup."
TALK = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]
SYSTEM_TALK = [{"role": "system", "content": SYSTEM}, *TALK]
SEEN = [{"role": "user", "content": f"<image>\n{ASKED}"}, TALK[1]]
EARLIER = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]

MEANS = {
    # ms-swift: its four layouts of text, several media, and a turn that is not learnt
    "ms-swift messages": ({"messages": SYSTEM_TALK}, {"messages": SYSTEM_TALK}),
    "ms-swift sharegpt": ({"system": SYSTEM, "conversation": [{"human": ASKED, "assistant": SAID}]}, {"messages": SYSTEM_TALK}),
    "ms-swift alpaca": (
        {"system": SYSTEM, "instruction": "Name it.", "input": "A thing", "output": SAID},
        {"messages": [SYSTEM_TALK[0], {"role": "user", "content": "Name it.\nA thing"}, TALK[1]]},
    ),
    "ms-swift query-response": (
        {"system": SYSTEM, "query": ASKED, "response": SAID, "history": [["Hi.", "Hello."]]},
        {"messages": [SYSTEM_TALK[0], *EARLIER, *TALK]},
    ),
    "ms-swift loss": (
        {"messages": [*EARLIER[:1], {**EARLIER[1], "loss": False}, TALK[0], {**TALK[1], "loss": True}]},
        {"messages": [EARLIER[0], {**EARLIER[1], "loss": False}, TALK[0], {**TALK[1], "loss": True}]},
    ),
    "ms-swift pictures": ({"messages": SEEN, "images": ["a.png"], "audios": []}, {"messages": SEEN, "images": ["a.png"]}),
    "ms-swift frames": (
        {"messages": [{"role": "user", "content": "<video>Go"}, TALK[1]], "videos": [["f/1.jpg", "f/2.jpg"]]},
        {"messages": [{"role": "user", "content": "<video>Go"}, TALK[1]], "videos": [["f/1.jpg", "f/2.jpg"]]},
    ),
    # LLaMA-Factory: alpaca without input, sharegpt with a system column, pre-training
    "LLaMA-Factory alpaca": ({"instruction": ASKED, "input": "", "output": SAID, "history": None}, {"messages": TALK}),
    "LLaMA-Factory sharegpt": (
        {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}], "system": SYSTEM, "tools": ""},
        {"messages": SYSTEM_TALK},
    ),
    "LLaMA-Factory pre-training": ({"text": "A document."}, {"text": "A document."}),
    "LLaMA-Factory picture": (
        {"instruction": f"<image>{ASKED}", "input": "", "output": SAID, "images": ["a.png"]},
        {"messages": [{"role": "user", "content": f"<image>{ASKED}"}, TALK[1]], "images": ["a.png"]},
    ),
    # OpenAI and Qwen: parts; a weight of 0
    "OpenAI parts": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "file:///d/a.png", "detail": "low"}},
                        {"type": "text", "text": ASKED},
                    ],
                },
                TALK[1],
            ]
        },
        {"messages": [{"role": "user", "content": f"<image>{ASKED}"}, TALK[1]], "images": ["/d/a.png"]},
    ),
    "OpenAI weight": ({"messages": [TALK[0], {**TALK[1], "weight": 0}]}, {"messages": [TALK[0], {**TALK[1], "loss": False}]}),
    "OpenAI developer": ({"messages": [{"role": "developer", "content": SYSTEM}, *TALK]}, {"messages": SYSTEM_TALK}),
    "Qwen parts": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "video", "video": ["f/1.jpg", "f/2.jpg"]}, {"type": "text", "text": ASKED}]},
                {"role": "assistant", "content": [{"type": "text", "text": SAID}]},
            ]
        },
        {"messages": [{"role": "user", "content": f"<video>{ASKED}"}, TALK[1]], "videos": [["f/1.jpg", "f/2.jpg"]]},
    ),
    "Parts without paths": (
        {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ASKED}]}, TALK[1]], "images": ["a.png"]},
        {"messages": [{"role": "user", "content": f"<image>{ASKED}"}, TALK[1]], "images": ["a.png"]},
    ),
    # LLaVA: one path or several; the hub's {path, bytes}
    "LLaVA": (
        {"id": "7", "image": "a.png", "conversations": [{"from": "human", "value": f"<image>\n{ASKED}"}, {"from": "gpt", "value": SAID}]},
        {"messages": SEEN, "images": ["a.png"]},
    ),
    "LLaVA list": ({"image": ["a.png"], "conversations": SEEN}, {"messages": SEEN, "images": ["a.png"]}),
    "LLaVA video": (
        {"video": "c.mp4", "conversations": TALK},
        {"messages": [{"role": "user", "content": f"<video>\n{ASKED}"}, TALK[1]], "videos": ["c.mp4"]},
    ),
    "one path": ({"messages": TALK, "images": "a.png"}, {"messages": SEEN, "images": ["a.png"]}),
    "dicts": ({"messages": SEEN, "images": [{"path": "a.png", "bytes": None}]}, {"messages": SEEN, "images": ["a.png"]}),
    "frames of one video": (
        {"messages": TALK, "video": ["1.jpg", "2.jpg"]},
        {"messages": [{"role": "user", "content": f"<video>\n{ASKED}"}, TALK[1]], "videos": [["1.jpg", "2.jpg"]]},
    ),
    # Megatron-Energon: a question about a picture, and what it may be answered by
    "Energon VQA": ({"context": ASKED, "answers": [SAID]}, {"messages": TALK}),
    "Energon captioning": ({"text": "A document.", "__key__": "000001"}, {"text": "A document."}),
    "TRL": ({"prompt": ASKED, "completion": SAID}, {"messages": TALK}),
    "tokenised": (
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "attention_mask": [1, 1, 1]},
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
    ),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_documented_row_means_its_plain_row_and_that_means_itself(name):
    row, plain = MEANS[name]
    assert plain_row(row, "f:1") == plain
    assert plain_row(json.loads(json.dumps(plain)), "f:1") == plain
    assert parse_sample(row, "f:1") == parse_sample(plain, "f:1")


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "w", "arguments": "{}"}}]}
REFUSED = {
    "rejected_response": ({"messages": TALK, "rejected_response": "No."}, "rejected_response: found 'No.'; preference training is not"),
    "chosen": ({"conversations": TALK[:1], "chosen": TALK[1], "rejected": TALK[1]}, "preference training is not supported here"),
    "chosen alone": ({"instruction": "x", "chosen": "a", "rejected": "b"}, "rejected: found 'b'; preference training"),
    "two answers": ({"instruction": "x", "output": ["a", "b"]}, "output: found .*expected one answer: preference training"),
    "kto": ({"messages": TALK, "label": False}, "label: found False; training on feedback"),
    "kto_tag": ({"instruction": "x", "output": "y", "kto_tag": True}, "kto_tag: found True"),
    "tools": ({"messages": TALK, "tools": '[{"name": "w"}]'}, "tools: found .*tool use is not supported here"),
    "tool_calls": ({"messages": [TALK[0], CALL]}, r"messages\[1\]: tool_calls: found .*tool use is not"),
    "tool": ({"messages": [TALK[0], {"role": "tool", "content": "12"}]}, r"messages\[1\]: found a turn of 'tool'; tool use is not"),
    "function_call": ({"conversations": [{"from": "function_call", "value": "w()"}]}, "found a turn of 'function_call'"),
    "observation": ({"conversations": [{"from": "observation", "value": "12"}]}, "found a turn of 'observation'"),
    "audios": ({"messages": TALK, "audios": ["a.wav"]}, r"audios: found \['a.wav'\]; audio is not supported"),
    "audio part": (
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        "a part of type 'input_audio'",
    ),
    "loss on a question": ({"messages": [{**TALK[0], "loss": True}, TALK[1]]}, r"messages\[0\]: loss: found true for a turn of user"),
    "half a weight": ({"messages": [TALK[0], {**TALK[1], "weight": 0.5}]}, "weight: found 0.5, expected true or false, or 1 or 0"),
    "weight against loss": ({"messages": [TALK[0], {**TALK[1], "weight": 1, "loss": False}]}, "contradict each other"),
    "weight of a row": ({"messages": TALK, "weight": 0.5}, "weight: found 0.5 for a whole row"),
    "two system texts": ({"system": "Other.", "messages": SYSTEM_TALK}, "system: found 'Other.' although the turns begin with another"),
    "fps of a part": (
        {"messages": [{"role": "user", "content": [{"type": "video", "video": "c.mp4", "fps": 2}]}]},
        "fps: found 2; .*max_fps",
    ),
    "bytes": ({"messages": SEEN, "images": [{"bytes": "aGk=", "path": None}]}, r"images\[0\]: found the content of a file in a row"),
    "data URL": ({"messages": SEEN, "images": ["data:image/png;base64,aGk="]}, r"images\[0\]: found the content of a file in a data URL"),
    "both keys": ({"messages": SEEN, "images": ["a.png"], "image": "b.png"}, "found both 'image' and 'images'"),
    "parts and list": (
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}], "images": ["b"]},
        "one place for all",
    ),
    "labels shifted": ({"input_ids": [5, 6], "labels": [6, -100]}, r"labels\[0\]: found 6 for the token 5, .*not shifted"),
    "labels missing": ({"input_ids": [5, 6]}, "labels: found NoneType None, expected numbers"),
    "padding": ({"input_ids": [5, 6], "labels": [5, 6], "attention_mask": [1, 0]}, "attention_mask: .*cut padding off"),
    "history": ({"query": "a", "response": "b", "history": ["c"]}, r"history\[0\]: found 'c', expected a question and an answer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_key_that_cannot_be_honoured_is_refused_by_name(name):
    row, message = REFUSED[name]
    with pytest.raises(ValueError, match=rf"^f:1: .*{message}"):
        plain_row(row, "f:1")


def boxed(answer, objects, **more):
    return {"messages": [SEEN[0], {"role": "assistant", "content": answer}], "images": ["a.png"], "objects": objects, **more}


def test_boxes_become_text_in_thousandths_of_their_picture():
    real = boxed("<ref-object> at <bbox>, tip <bbox>", {"ref": ["a cup"], "bbox": [[10, 20, 50.5, 40], [100, 0]]})
    share = boxed("<bbox>", {"ref": [], "bbox": [[0.1, 0.5, 0.25, 1]], "bbox_type": "norm1"})
    sample = parse_sample(real, "f:1")
    text = sample.located([(100, 40)]).messages[1].content
    assert text == "<ref>a cup</ref> at <box>[[100, 500, 505, 1000]]</box>, tip <box>[[1000, 0]]</box>"
    assert parse_sample(plain_row(real, "f:1"), "f:1") == sample
    assert parse_sample(share, "f:1").messages[1].content == "<box>[[100, 500, 250, 1000]]</box>"
    with pytest.raises(ValueError, match=r"box \[100.0, 0.0\]: lies outside the picture"):
        sample.located([(90, 40)])


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ({"ref": [], "bbox": []}, "objects: found 0 entries of bbox for 1 <bbox>"),
        ({"bbox": [[1, 2, 3]]}, r"objects: bbox\[0\]: found list \[1, 2, 3\]"),
        ({"bbox": [[1, 2, 3, 4]], "image_id": [1]}, "belongs to picture 1 of 1"),
        ({"bbox": [[1, 2, 3, 4]], "bbox_type": "yards"}, "bbox_type: found 'yards'"),
        ({"bbox": [[0, 0, 2, 1]], "bbox_type": "norm1"}, "lies outside the picture"),
        ({"category": [1]}, "objects: found dict"),
        ({"bbox": [[1, 2, 3, 10**400]]}, r"objects: bbox\[0\]: found list"),
    ],
)
def test_boxes_that_do_not_fit_are_refused(objects, message):
    with pytest.raises(ValueError, match=message):
        plain_row(boxed("<bbox>", objects if objects != {"ref": [], "bbox": []} else {"ref": [], "bbox": [], "bbox_type": "real"}), "f:1")


def test_keys_that_nothing_uses_are_kept_by_name():
    row = {"messages": [{**TALK[0], "mood": "good", "name": "Ann"}, TALK[1]], "id": 3, "solution": "4", "empty": None, "prompt": "x"}
    assert plain_row(row, "f:1")["unknown_keys"] == ["messages[].mood", "prompt", "solution"]
    assert parse_sample(plain_row(row, "f:1"), "f:1").unknown_keys == ("messages[].mood", "prompt", "solution")


@pytest.mark.parametrize("name", ["<bbox>", "a <ref-object>"])
def test_a_name_that_holds_the_mark_of_a_box_or_name_is_refused(name):
    with pytest.raises(ValueError, match="objects: ref: found .*a name holds neither <ref-object> nor <bbox>"):
        plain_row(boxed("<ref-object><bbox>", {"ref": [name], "bbox": [[1, 2]]}), "f:1")


def test_half_a_character_in_the_name_of_a_box_is_refused():
    with pytest.raises(ValueError, match="objects: ref: found half a character"):
        plain_row(boxed("<ref-object><bbox>", {"ref": ["a\ud800"], "bbox": [[1, 2]]}), "f:1")


def any_value(draw, keys, depth):
    """Some JSON, with the keys that mean something in it."""
    kind = draw.random()
    if depth == 0 or kind < 0.4:
        return draw.choice(
            [None, "", 0, -1, 0.5, True, False, "a", "<image>", "<bbox>", "user", "text", "image", "norm1", "\ud800"]
        )
    if kind < 0.7:
        return [any_value(draw, keys, depth - 1) for _ in range(draw.randint(0, 4))]
    return {draw.choice(keys): any_value(draw, keys, depth - 1) for _ in range(draw.randint(0, 4))}


def test_any_row_is_read_or_refused_with_its_place():
    draw, read = random.Random(0), 0
    keys = [
        *sorted(USED_FIELDS),
        "role",
        "from",
        "content",
        "type",
        "path",
        "bytes",
        "ref",
        "bbox",
        "bbox_type",
        "image_id",
        "unknown_keys",
    ]
    for _ in range(5000):
        row = {draw.choice(keys): any_value(draw, keys, 3) for _ in range(draw.randint(0, 4))}
        if draw.random() < 0.6:
            row["messages"] = [
                {"role": draw.choice(["user", "assistant"]), "content": draw.choice(["a", "<bbox>", any_value(draw, keys, 2)])}
            ]
        try:
            plain = plain_row(row, "f:1")
        except ValueError as error:
            assert str(error).startswith("f:1: ")
            continue
        read += 1
        assert plain_row(plain, "f:1") == plain and parse_sample(plain, "f:1").messages
    assert read > 500
