"""Keys of rows and turns: those that are refused because they change what is learnt, and those that nobody needs to hear about."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mindspeed_vita.data.schema.found import is_empty, shown

_PREFERENCE = "preference training is not supported here; write the answer to learn as the last turn and leave this key out"
_TOOLS = "tool use is not supported here; write calls and results as text of assistant and user turns"
_LABEL = "training on feedback or classes is not supported here; write the answer to learn as an assistant turn"
_AUDIO = "audio is not supported here; leave it out"

REFUSED = {
    **dict.fromkeys(("rejected_response", "rejected_messages", "rejected_images", "rejected", "chosen"), _PREFERENCE),
    **dict.fromkeys(("positive_messages", "negative_messages"), _PREFERENCE),
    **dict.fromkeys(("kto_tag", "label"), _LABEL),
    **dict.fromkeys(("tools", "functions", "tool_calls", "function_call"), _TOOLS),
    **dict.fromkeys(("audios", "audio"), _AUDIO),
}
"""Keys of a row that may only be empty, and what to do about each."""
REFUSED_IN_TURN = {
    **dict.fromkeys(("tool_calls", "function_call"), _TOOLS),
    **dict.fromkeys(("audio", "audios"), _AUDIO),
    **dict.fromkeys(("reasoning_content", "thinking"), "a separate chain of thought is not supported here; write it into the content"),
}
REFUSED_ROLES = {
    **dict.fromkeys(("tool", "function", "function_call", "tool_call", "tool_response", "observation", "ipython"), _TOOLS),
}
METADATA = frozenset(
    ("id", "idx", "index", "uid", "uuid", "sample_id", "source", "dataset", "dataset_name", "origin", "split", "channel", "category")
    + ("task", "task_type", "type", "subset", "language", "lang", "license", "url", "meta", "metadata", "info", "tags", "comment", "date")
    + ("width", "height", "image_id", "video_id", "question_id", "duration", "model", "score", "prompt_id", "__key__", "__url__")
)
"""Keys that are left out without a word."""
METADATA_IN_TURN = frozenset(("id", "name", "time", "timestamp", "date", "model", "source", "meta", "metadata", "refusal", "annotations"))


def refuse_keys(values: Mapping[str, Any], refused: Mapping[str, str], where: str) -> None:
    """Refuses a row or turn by the first key that may not be used.

    Raises:
        ValueError: names the key and says what to do.
    """
    for name, why in refused.items():
        if name in values and not is_empty(values[name]) and not (name == "label" and isinstance(values[name], str)):
            raise ValueError(f"{where}: {name}: found {shown(values[name])}; {why}")


def unknown_keys(values: Mapping[str, Any], known: Collection[str], metadata: Collection[str]) -> Iterator[str]:
    """Keys with a value that are neither used nor metadata."""
    for name, value in values.items():
        if name not in known and name not in metadata and not is_empty(value):
            yield str(name)


def learns(turn: Mapping[str, Any], role: str, where: str) -> bool | None:
    """What `loss`, `loss_scale`, `weight` or `train` of a turn say: learn it, do not, or None where they say nothing.

    Raises:
        ValueError: neither 0 nor 1, they contradict each other, or a turn that is not the assistant's shall be learnt.
    """
    said: dict[str, bool] = {}
    for name in ("loss", "loss_scale", "weight", "train"):
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise ValueError(f"{where}: {name}: found {shown(value)}, expected true or false, or 1 or 0: a turn is learnt or it is not")
        said[name] = bool(value)
    if len(set(said.values())) > 1:
        raise ValueError(f"{where}: found {', '.join(f'{name}={value}' for name, value in said.items())}, which contradict each other")
    if not said:
        return None
    if role != "assistant" and any(said.values()):
        raise ValueError(f"{where}: {next(iter(said))}: found true for a turn of {role}; only turns of the assistant are learnt here")
    return any(said.values())
