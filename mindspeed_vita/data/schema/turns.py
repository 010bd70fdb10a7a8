"""Turns of a row, whichever of the usual layouts they come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mindspeed_vita.data.schema.content import PartMedia, text_of
from mindspeed_vita.data.schema.found import is_empty, kind, shown
from mindspeed_vita.data.schema.keys import METADATA_IN_TURN, REFUSED_IN_TURN, REFUSED_ROLES, learns, refuse_keys, unknown_keys

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "developer": "system"}
TURN_FIELDS = ("messages", "conversations", "conversation", "texts")
"""Fields with turns; texts are the_cauldron's pairs of user and assistant, conversation may be ms-swift's of human and assistant."""
PAIRS = (("query", "response"), ("instruction", "output"), ("prompt", "completion"), ("question", "answer"), ("context", "answers"))
"""Fields with a question and its answer."""
_TURN_KEYS = frozenset(("role", "from", "content", "value", "loss", "loss_scale", "weight", "train", *REFUSED_IN_TURN))


def chat_fields(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields that the turns of a row are made of; none if it has no turns."""
    for name in TURN_FIELDS:
        if not is_empty(row.get(name)):
            return (name,)
    for question, answer in PAIRS:
        if row.get(question) is not None and row.get(answer) is not None:
            return (question, answer, "history", *(("input",) if question == "instruction" else ()))
    return ()


def turns_of(row: Mapping[str, Any], found: PartMedia, unknown: list[str], where: str) -> list[dict[str, Any]]:
    """Turns as {role, content} with text as content, and loss where the row says it. Keys that are not used are added to unknown.

    Raises:
        ValueError: turns that are none, or that would be learnt otherwise than the row asks for.
    """
    fields = chat_fields(row)
    turns = _listed(row, fields[0], where) if len(fields) == 1 else _paired(row, fields, where)
    plain = []
    for place, turn in enumerate(turns):
        at = f"{where}: {fields[0]}[{place}]"
        plain.append(_turn(turn, found, at))
        unknown += [f"{fields[0]}[].{name}" for name in unknown_keys(turn, _TURN_KEYS, METADATA_IN_TURN)]
    system = row.get("system")
    if not is_empty(system):
        text = text_of(system, found, f"{where}: system")
        if plain[0]["role"] != "system":
            plain.insert(0, {"role": "system", "content": text})
        elif plain[0]["content"] != text:
            raise ValueError(f"{where}: system: found {shown(text)} although the turns begin with another system text; keep one of them")
    return plain


def _turn(turn: Any, found: PartMedia, where: str) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{where}: found {kind(turn)}, expected an object with role and content")
    role = turn.get("role") if turn.get("role") is not None else turn.get("from")
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    refuse_keys(turn, REFUSED_IN_TURN, where)
    if isinstance(role, str) and role in REFUSED_ROLES:
        raise ValueError(f"{where}: found a turn of {role!r}; {REFUSED_ROLES[role]}")
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"{where}: found role {shown(role)}, expected one of {', '.join(ROLES)}")
    plain: dict[str, Any] = {"role": ROLES[role], "content": text_of(content, found, where)}
    learn = learns(turn, ROLES[role], where)
    if learn is not None and ROLES[role] == "assistant":
        plain["loss"] = learn
    return plain


def _listed(row: Mapping[str, Any], field: str, where: str) -> list[Any]:
    turns = row[field]
    if not isinstance(turns, Sequence) or isinstance(turns, (str, bytes)):
        raise ValueError(f"{where}: {field}: found {type(turns).__name__}, expected a list of turns")
    if field in ("messages", "conversations") or not all(isinstance(pair, Mapping) and "assistant" in pair for pair in turns):
        return _checked_pairs(turns, field, where) if field == "texts" else list(turns)
    return _checked_pairs(turns, field, where)


def _checked_pairs(turns: Sequence[Any], field: str, where: str) -> list[Any]:
    found = []
    for place, pair in enumerate(turns):
        asked = "human" if isinstance(pair, Mapping) and "human" in pair else "user"
        for role in (asked, "assistant"):
            if not isinstance(pair, Mapping) or not isinstance(pair.get(role), str):
                raise ValueError(f"{where}: {field}[{place}].{role}: found no text; expected a question and an answer")
            found.append({"role": ROLES[role], "content": pair[role]})
    return found


def _paired(row: Mapping[str, Any], fields: tuple[str, ...], where: str) -> list[Any]:
    question, answer = row[fields[0]], row[fields[1]]
    if "input" in fields and not is_empty(row.get("input")):
        question = f"{question}\n{row['input']}" if question else row["input"]
    if isinstance(answer, (list, tuple)):
        if len(answer) != 1 or not isinstance(answer[0], str):
            raise ValueError(f"{where}: {fields[1]}: found {kind(answer)}, expected one answer: preference training is not supported here")
        answer = answer[0]
    history = row.get("history") or []
    if not isinstance(history, (list, tuple)):
        raise ValueError(f"{where}: history: found {kind(history)}, expected a list of questions and answers")
    pairs = [*history, (question, answer)]
    turns = []
    for place, pair in enumerate(pairs):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            name = f"history[{place}]" if place < len(pairs) - 1 else " and ".join(fields[:2])
            raise ValueError(f"{where}: {name}: found {shown(pair)}, expected a question and an answer as text")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns


def with_tags(turns: list[dict[str, Any]], num_media: int, tag: str) -> list[dict[str, Any]]:
    """The turns with one tag for each picture or video in front of the first question, where no turn has such a tag."""
    if not num_media or any(tag in turn["content"] for turn in turns):
        return turns
    first = next((place for place, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is None:
        return turns
    tagged = {**turns[first], "content": f"{tag}\n" * num_media + turns[first]["content"]}
    return [*turns[:first], tagged, *turns[first + 1 :]]
