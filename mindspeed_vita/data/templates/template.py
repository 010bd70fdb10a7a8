"""What every chat template has in common: the special tokens it needs, and turns told apart in a text that is tokenised as one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mindspeed_vita.data.sample import Message

EncodedTurn = tuple[list[int], list[bool]]
"""(token ids, whether each one is supervised) of one message, unshifted."""


class RenderedTurn(NamedTuple):
    """One message as text."""

    text: str
    learn_from: int
    """First character that is supervised; the length of the text if none is."""


class ChatTemplate(ABC):
    """Turns messages into tokens; tags of pictures and videos stay single tokens.

    A conversation cut after an answer gives the tokens of the turns kept, unchanged.
    """

    name: ClassVar[str]
    """Key in the registry, and in hf/chat_template.py."""
    special_tokens: ClassVar[tuple[str, ...]]
    """What the tokenizer must hold as single tokens."""
    stop_token: ClassVar[str]
    """Ends an answer."""
    pad_token: ClassVar[str]
    """Fills packs up, and ends a document that is learnt as a whole."""
    begin_token: ClassVar[str] = ""
    """Before the first turn, and before such a document; empty where the format has none."""

    @abstractmethod
    def render(self, messages: Sequence[Message]) -> list[RenderedTurn]:
        """The text of each message; put together it is what the jinja text of the same name gives."""

    def encode_turns(self, messages: Sequence[Message], tokenizer: Any) -> list[EncodedTurn]:
        """Tokens of each message. Documents are learnt as a whole, up to pad_token; what is tokenised already stays as it is."""
        if len(messages) == 1 and messages[0].role == "tokens":
            return [(list(messages[0].token_ids), list(messages[0].supervised))]
        if len(messages) == 1 and messages[0].role == "text":
            text = f"{self.begin_token}{messages[0].content}{self.pad_token}"
            ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
            return [(ids, [True] * len(ids))]
        turns = self.encode_chat(messages, tokenizer)
        return [(ids, flags if message.learn else [False] * len(flags)) for message, (ids, flags) in zip(messages, turns)]

    def encode_chat(self, messages: Sequence[Message], tokenizer: Any) -> list[EncodedTurn]:
        """Tokens of each turn, of the whole text tokenised at once, as transformers does. A token belongs where it ends."""
        turns = self.render(messages)
        # The Rust tokenizer itself: transformers' wrapper costs several times more than tokenising a turn does.
        encoding = tokenizer.backend_tokenizer.encode("".join(turn.text for turn in turns), add_special_tokens=False)
        ends = np.fromiter((end for _, end in encoding.offsets), dtype=np.int64, count=len(encoding.ids))
        encoded, start, first = [], 0, 0
        for turn in turns:
            stop = start + len(turn.text)
            last = int(np.searchsorted(ends, stop, side="right"))
            encoded.append((encoding.ids[first:last], (ends[first:last] > start + turn.learn_from).tolist()))
            start, first = stop, last
        assert first == len(ends), (first, len(ends))
        return encoded

    def encode(self, messages: Sequence[Message], tokenizer: Any) -> EncodedTurn:
        """All turns one after the other."""
        turns = self.encode_turns(messages, tokenizer)
        return [token for ids, _ in turns for token in ids], [flag for _, flags in turns for flag in flags]


def check_template(template: ChatTemplate, tokenizer: Any) -> None:
    """Refuses a template that does not go with a tokenizer, before any sample is read.

    Raises:
        ValueError: a special token is missing, no token of an answer would be supervised, or a tag of a picture is not kept.
    """
    vocabulary = tokenizer.get_vocab()  # a look-up by id would give missing tokens the id of the unknown token
    needed = dict.fromkeys((*template.special_tokens, template.stop_token, template.pad_token))
    missing = [token for token in needed if token not in vocabulary]
    if missing:
        fitting = "give a tokenizer that has them (data.tokenizer), or another data.template"
        raise ValueError(f"data.template={template.name!r} needs {', '.join(missing)}, which the tokenizer lacks; {fitting}")
    tag = "<image>"
    turns = template.encode_turns([Message("system", "S"), Message("user", f"{tag}\nQ"), Message("assistant", "A")], tokenizer)
    if not any(turns[-1][1]):
        raise ValueError(
            f"data.template={template.name!r} leaves no supervised token in an answer; its render() must set learn_from inside the text"
        )
    found = turns[1][0].count(vocabulary.get(tag, -1))
    if found != 1:
        raise ValueError(f"data.template={template.name!r} turns one {tag} into {found} tokens of it; its render() must keep the content")
