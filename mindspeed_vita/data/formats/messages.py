"""From what hub data sets hold to the schema of sample.py: turns under other names, and tags for pictures that no turn mentions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TURN_FIELDS = ("messages", "conversations", "texts")
"""Fields with turns; texts are the_cauldron's pairs of user and assistant."""


def turns_of(row: Mapping[str, Any], where: str) -> list[Any]:
    """The turns of a row, whatever its field for them is called.

    Raises:
        ValueError: it has none.
    """
    field = next((name for name in TURN_FIELDS if row.get(name)), None)
    if field is None:
        raise ValueError(f"{where}: found fields {', '.join(map(str, row)) or 'none'}; expected turns under {' or '.join(TURN_FIELDS)}")
    turns = row[field]
    if not isinstance(turns, Sequence) or isinstance(turns, (str, bytes)):
        raise ValueError(f"{where}: {field}: found {type(turns).__name__}, expected a list of turns")
    if field != "texts":
        return list(turns)
    found = []
    for place, pair in enumerate(turns):
        for role in ("user", "assistant"):
            if not isinstance(pair, Mapping) or not isinstance(pair.get(role), str):
                raise ValueError(f"{where}: texts[{place}].{role}: found no text; expected a question and an answer")
            found.append({"role": role, "content": pair[role]})
    return found


def with_tags(turns: list[Any], num_media: int, tag: str = "<image>") -> list[Any]:
    """The turns with one tag for each picture (or video) in front of the first question, where no turn has such a tag."""
    contents = [turn.get("content", turn.get("value")) for turn in turns if isinstance(turn, Mapping)]
    if not num_media or any(isinstance(content, str) and tag in content for content in contents):
        return turns
    tagged = [dict(turn) if isinstance(turn, Mapping) else turn for turn in turns]
    for turn in tagged:
        if isinstance(turn, dict) and turn.get("role", turn.get("from")) in ("user", "human"):
            key = "content" if "content" in turn else "value"
            turn[key] = f"{tag}\n" * num_media + str(turn[key])
            break
    return tagged
