"""Runs the real lmms-eval with our model and writes down every call that it makes of it, with what it got back.

    python -m tests.lmms_eval_plugin.record CALLS.json --model long_vita --model_args ... --tasks ...
    python -m tests.lmms_eval_plugin.record --merge CHAT.json SIMPLE.json calls.json

tests/unit/evaluation/test_lmms_eval_calls.py gives the recorded calls to the model class where lmms-eval is not installed.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CALLS: list[dict[str, Any]] = []


def plain(value: Any) -> Any:
    """A value as JSON: a picture as its PNG in base64, a path below the world's folder as its name."""
    if hasattr(value, "mode") and hasattr(value, "tobytes"):
        content = io.BytesIO()
        value.save(content, "PNG")
        return {"picture": base64.b64encode(content.getvalue()).decode()}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, str) and value == os.environ["VITA_FILM"]:
        return "FILM"
    return value


def arguments_of(model: Any, arguments: tuple[Any, ...]) -> list[Any]:
    """A request's arguments; for a function of the task, what it gives for the request's row."""
    *_, doc_id, task, split = arguments
    return [{"called": plain(value(model.task_dict[task][split][doc_id]))} if callable(value) else plain(value) for value in arguments]


def merged(files: Sequence[Path]) -> dict[str, Any]:
    """The calls of several runs, each picture once: {"pictures": [...], "calls": [...]}, and {"picture": place} in the calls."""
    pictures: list[str] = []

    def placed(value: Any) -> Any:
        if isinstance(value, dict) and set(value) == {"picture"}:
            if value["picture"] not in pictures:
                pictures.append(value["picture"])
            return {"picture": pictures.index(value["picture"])}
        if isinstance(value, dict):
            return {key: placed(item) for key, item in value.items()}
        return [placed(item) for item in value] if isinstance(value, list) else value

    calls = [placed(call) for file in files for call in json.loads(file.read_text())]
    return {"pictures": pictures, "calls": calls}


def main() -> None:
    """Wraps the methods, then runs lmms-eval."""
    from lmms_eval.__main__ import cli_evaluate

    from mindspeed_vita.evaluation.lmms_eval.model import LongVita

    target = Path(sys.argv.pop(1))
    init = LongVita.__init__

    def begin(self: Any, **options: Any) -> None:
        CALLS.append({"call": "init", "class": type(self).__name__, "options": sorted(options)})
        init(self, **options)

    def recorded(name: str) -> Any:
        method = getattr(LongVita, name)

        def call(self: Any, requests: Any) -> Any:
            found = method(self, requests)
            results = [list(one.text) if isinstance(one.text, tuple) else one.text for one in found]
            given = [arguments_of(self, request.args) for request in requests]
            CALLS.append({"call": name, "class": type(self).__name__, "requests": given, "results": results})
            return found

        return call

    LongVita.__init__ = begin  # type: ignore[method-assign, assignment]
    for name in ("generate_until", "loglikelihood"):
        setattr(LongVita, name, recorded(name))
    cli_evaluate()
    if int(os.environ.get("RANK", "0")) == 0:
        target.write_text(json.dumps(CALLS, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "--merge":
        *sources, output = map(Path, sys.argv[2:])
        output.write_text(json.dumps(merged(sources), separators=(",", ":")) + "\n")
    else:
        main()
