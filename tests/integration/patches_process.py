"""One process with MindSpeed-LLM in it, run by test_patches.py: takes our bootstrap's step and writes what changed and what was refused."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from typing import Any, Callable

PACKAGES = ("megatron", "mindspeed", "mindspeed_llm", "torch", "torch_npu")
TARGET = "megatron.training.training.train_step"
HOLDER = "mindspeed_llm.training.training"


def foreign_wrapper(original: Callable[..., Any]) -> Callable[..., Any]:
    """What somebody else might put there."""

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    return wrapper


def renamed(forward_step, iterator, model, optimizer, scheduler, config):
    """train_step of another version."""


def main(output: str) -> None:
    """Everything in turn; each refusal is undone before the next."""
    import mindspeed_llm.training.training  # noqa: F401 - the adaptor, and the modules that training loads

    from mindspeed_vita.integration.mindspeed_llm.bootstrap import bootstrap
    from mindspeed_vita.integration.patching import load_ledger
    from tests.attributes import difference, snapshot

    report: dict[str, Any] = {"flags": sys.argv[1:]}
    targets = [patch.target for patch in load_ledger().patches]
    for target in targets:
        importlib.import_module(target.rsplit(".", 1)[0])

    def step() -> dict[str, Any]:
        """What our step changed, or what it said."""
        before = snapshot(PACKAGES)
        message = ""
        try:
            bootstrap()
        except ValueError as error:
            message = str(error)
        changes = difference(before, snapshot(PACKAGES))
        originals = {target: before[target] for target in targets}
        return {
            "message": message,
            "changed": [change.name for change in changes],
            "strangers": [change.name for change in changes if all(change.before is not value for value in originals.values())],
        }

    training = importlib.import_module("megatron.training.training")
    holder = importlib.import_module(HOLDER)
    original = training.train_step
    # refusals first: once our patches are in place they are not applied again
    holder.one_step = original
    report["alias"] = step()
    del holder.one_step
    for name, function in (("foreign", foreign_wrapper(original)), ("signature", renamed), ("none", None)):
        training.train_step = holder.train_step = function
        report[name] = step()
        training.train_step = holder.train_step = original
    report["step"] = step()
    report["again"] = step()
    report["layers"] = layers()
    with open(output, "w", encoding="utf-8") as file:
        json.dump(report, file)


def layers() -> dict[str, list[str]]:
    """What lies in each target now, from the outside."""
    from mindspeed_vita.integration.patching import load_ledger
    from mindspeed_vita.integration.patching.live import layers as layers_of
    from mindspeed_vita.integration.patching.live import locate

    return {patch.target: layers_of(locate(patch.target).value) for patch in load_ledger().patches}


if __name__ == "__main__":
    main(sys.argv.pop(1))
