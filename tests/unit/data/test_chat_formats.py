"""Each chat template: golden text, spans and ids, and the same ids as transformers' apply_chat_template with the published jinja text."""

import json

import pytest

from mindspeed_vita.data.sample import Message
from mindspeed_vita.data.templates import ChatTemplate, check_template, get_template, template_names
from mindspeed_vita.data.templates.template import RenderedTurn
from mindspeed_vita.data.tokenizer import load_tokenizer, vision_token_ids
from mindspeed_vita.hf.chat_template import CHAT_TEMPLATES, VICUNA_SYSTEM
from tests.unit.data.conftest import TEXTS

SPECIAL = sorted({token for name in template_names() for token in (*get_template(name).special_tokens, get_template(name).pad_token)})

# As published with the models; vicuna's came as Python (FastChat's Conversation with ADD_COLON_TWO) and is written out here.
PUBLISHED = {
    "qwen2": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}"
    "{% generation %}{{ message['content'] + '<|im_end|>' + '\n'}}{% endgeneration %}{% endfor %}",
    "llama3": "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' %}"
    "{% if loop.index0 == 0 %}{% set content = '<|begin_of_text|>' + content %}{% endif %}{{ content }}"
    "{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}{% endfor %}",
    "mistral": "{{ '<s>' }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST]' + message['content'] + '[/INST]' }}"
    "{% elif message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}"
    "{% else %}{% generation %}{{ message['content'] + '</s>' }}{% endgeneration %}{% endif %}{% endfor %}",
    "vicuna": "{{ '<s>' }}{% if messages[0]['role'] != 'system' %}{{ \"" + VICUNA_SYSTEM + "\" + ' ' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}{% elif message['role'] == 'user' %}"
    "{{ 'USER: ' + message['content'] + ' ' }}{% else %}{{ 'ASSISTANT:' }}{% generation %}{{ ' ' + message['content'] + '</s>' }}"
    "{% endgeneration %}{% endif %}{% endfor %}",
}

TALK = [
    Message("system", "Be brief. It's a picture."),
    Message("user", "<image>\nWhat is in the picture?  And 12 dogs?"),
    Message("assistant", "It's a cat.\n\nYes."),
    Message("user", "你好 <video> again?"),
    Message("assistant", "A red car drives by"),
]
CONVERSATIONS = [TALK, TALK[1:], TALK[1:3], TALK[:3]]


@pytest.fixture(scope="module")
def byte_level(tokenizer_folder):
    """A byte-level BPE with every template's special tokens, as Llama 3's and Tekken are."""
    loaded = load_tokenizer(tokenizer_folder)
    loaded.add_tokens([token for token in SPECIAL if token not in loaded.get_vocab()], special_tokens=True)
    return loaded


def sentencepiece(normalizer, pre_tokenizer):
    """A BPE with byte fallback whose words start with a low line, as Llama 2's, which Vicuna uses."""
    from tokenizers import Tokenizer, decoders, models, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    bytes_ = [f"<0x{number:02X}>" for number in range(256)]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *bytes_], show_progress=False))
    whole = json.loads(tokenizer.to_str())
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["content"] == "<unk>"]  # bytes are no special tokens
    loaded = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(whole)), unk_token="<unk>")
    loaded.add_tokens(SPECIAL, special_tokens=True)
    return loaded


@pytest.fixture(scope="module", params=["byte_level", "prefixed", "metaspace"])
def any_tokenizer(request, byte_level, tmp_path_factory):
    from tokenizers import normalizers, pre_tokenizers

    if request.param == "byte_level":
        return byte_level
    if request.param == "prefixed":
        made = sentencepiece(normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None)
    else:
        made = sentencepiece(None, pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False))
    folder = tmp_path_factory.mktemp(request.param)
    made.save_pretrained(folder)
    return load_tokenizer(folder, get_template("vicuna"))


@pytest.mark.parametrize("name", ["llama3", "mistral", "vicuna"])
@pytest.mark.parametrize("talk", CONVERSATIONS, ids=["system", "two", "one", "cut"])
def test_ids_and_spans_equal_transformers(name, talk, any_tokenizer):
    messages = [{"role": message.role, "content": message.content} for message in talk]
    expected = any_tokenizer.apply_chat_template(
        messages, chat_template=PUBLISHED[name], return_dict=True, return_assistant_tokens_mask=True
    )
    ids, supervised = get_template(name).encode(talk, any_tokenizer)
    assert ids == list(expected["input_ids"])
    learnt = [bool(flag) for flag in expected["assistant_masks"]]
    if name == "llama3":  # the published text has one header for all roles, so its mask spans every role's content
        spans = get_template(name).encode_turns(talk, any_tokenizer)
        roles = [message.role for message, (turn, _) in zip(talk, spans) for _ in turn]
        learnt = [flag and role == "assistant" for flag, role in zip(learnt, roles)]
    assert supervised == learnt and any(supervised)


@pytest.mark.parametrize("talk", CONVERSATIONS, ids=["system", "two", "one", "cut"])
def test_qwen2_equals_transformers_where_no_content_starts_with_a_line_feed(talk, byte_level):
    messages = [{"role": message.role, "content": message.content} for message in talk]
    expected = byte_level.apply_chat_template(messages, chat_template=PUBLISHED["qwen2"], return_dict=True)
    assert get_template("qwen2").encode(talk, byte_level)[0] == list(expected["input_ids"])


@pytest.mark.parametrize("name", template_names())
@pytest.mark.parametrize("talk", CONVERSATIONS, ids=["system", "two", "one", "cut"])
def test_the_exported_jinja_text_is_the_text_that_training_sees(name, talk, byte_level):
    messages = [{"role": message.role, "content": message.content} for message in talk]
    text = byte_level.apply_chat_template(messages, chat_template=CHAT_TEMPLATES[name], tokenize=False)
    assert text == "".join(turn.text for turn in get_template(name).render(talk))
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    assert byte_level.apply_chat_template(parts, chat_template=CHAT_TEMPLATES[name], tokenize=False) == text


@pytest.mark.parametrize("name", template_names())
def test_a_prompt_is_the_beginning_of_the_conversation(name, byte_level):
    question = [{"role": "user", "content": "How many?"}]
    prompt = byte_level.apply_chat_template(question, chat_template=CHAT_TEMPLATES[name], tokenize=False, add_generation_prompt=True)
    ids, supervised = get_template(name).encode([Message("user", "How many?"), Message("assistant", "A")], byte_level)
    begun = byte_level(prompt, add_special_tokens=False).input_ids
    assert ids[: len(begun)] == begun and supervised.index(True) == len(begun)


GOLDEN = {
    "qwen2": ("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n", "A<|im_end|>\n"),
    "llama3": ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
               "<|start_header_id|>assistant<|end_header_id|>\n\n", "A<|eot_id|>"),
    "mistral": ("<s>[INST]Q[/INST]", "A</s>"),
    "vicuna": (f"<s>{VICUNA_SYSTEM} USER: Q ASSISTANT:", " A</s>"),
}  # fmt: skip


@pytest.mark.parametrize("name", template_names())
def test_golden_text_and_span(name, byte_level):
    ids, supervised = get_template(name).encode([Message("user", "Q"), Message("assistant", "A")], byte_level)
    learnt = [token for token, flag in zip(ids, supervised) if flag]
    context = [token for token, flag in zip(ids, supervised) if not flag]
    decode = lambda tokens: byte_level.decode(tokens, clean_up_tokenization_spaces=False)  # noqa: E731
    assert (decode(context), decode(learnt)) == GOLDEN[name]
    assert get_template(name).stop_token in byte_level.convert_ids_to_tokens(learnt)


@pytest.mark.parametrize("name", template_names())
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_cutting_after_an_answer_leaves_the_tokens_before_it(name, kept, any_tokenizer):
    talk = [Message(role, text) for text in (" a b ", "\nx ", "1", "") for role in ("user", "assistant")]
    whole = get_template(name).encode_turns(talk, any_tokenizer)
    cut = get_template(name).encode_turns(talk[: 2 * kept], any_tokenizer)
    assert cut == whole[: 2 * kept]


def test_a_tokenizer_without_the_special_tokens_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"data.template='llama3' needs <\|begin_of_text\|>, .*the tokenizer lacks; give a tokenizer"):
        check_template(get_template("llama3"), tokenizer)
    with pytest.raises(ValueError, match=r"'mistral' needs <s>, </s>, \[INST\]"):
        check_template(get_template("mistral"), tokenizer)


class Mute(ChatTemplate):
    name, special_tokens, stop_token, pad_token = "mute", (), "<|im_end|>", "<|im_end|>"

    def render(self, messages):
        return [RenderedTurn(f"{message.content}<|im_end|>", len(message.content) + 10) for message in messages]


class Forgetful(Mute):
    def render(self, messages):
        return [RenderedTurn("words<|im_end|>", 0) for _ in messages]


def test_a_template_that_teaches_nothing_or_loses_tags_is_refused(tokenizer):
    with pytest.raises(ValueError, match="data.template='mute' leaves no supervised token in an answer"):
        check_template(Mute(), tokenizer)
    with pytest.raises(ValueError, match="turns one <image> into 0 tokens of it"):
        check_template(Forgetful(), tokenizer)


def test_build_data_refuses_before_it_reads_a_row(world, say):
    world.rows("data.jsonl", [{"messages": say("A?", "B.")}])
    world.mixture(only={"ratio": 1, "data_paths": [str(world.folder / "data.jsonl")]})
    with pytest.raises(ValueError, match=r"data.template='vicuna' needs <s>, </s>"):
        world.build(template="vicuna")
    with pytest.raises(ValueError, match="data.template='chatml' is unknown; expected one of qwen2, llama3, mistral, vicuna"):
        world.build(template="chatml")


def test_byte_fallback_vocabularies_have_a_line_feed_too(any_tokenizer):
    (line_feed,) = vision_token_ids(any_tokenizer).newline
    assert any_tokenizer.convert_ids_to_tokens(line_feed) in ("Ċ", "<0x0A>")
