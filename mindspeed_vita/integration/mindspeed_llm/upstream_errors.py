"""Upstream's own refusals as one line: what its checks of the arguments assert, and imports that its projects lack in each other."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

_CHECKS = ("parse_args", "validate_args", "pre_validate_args", "post_validate_args", "load_args_from_checkpoint")
_PROJECTS = {"megatron": "Megatron-LM", "mindspeed": "MindSpeed", "mindspeed_llm": "MindSpeed-LLM"}


@contextmanager
def arguments_of_upstream() -> Iterator[None]:
    """Turns what upstream's checks of the arguments raise into a ValueError of one line; everything else passes.

    Raises:
        ValueError: upstream does not accept the command line.
    """
    try:
        yield
    except (AssertionError, RuntimeError, TypeError, NotImplementedError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1]
        if last.name != "initialize_megatron" and not any(frame.name in _CHECKS for frame in frames):
            raise
        # an assertion without a message says nothing but what it asserted
        said = str(error) or linecache.getline(last.filename, last.lineno or 0).strip()
        where = "/".join(last.filename.split("/")[-3:])
        raise ValueError(f"upstream refuses the command line ({where}, line {last.lineno}): {said}") from error


@contextmanager
def imports_of_upstream() -> Iterator[None]:
    """Turns an import that the three upstream projects do not find in each other into a ValueError of one line.

    Raises:
        ValueError: the checkouts do not belong together.
    """
    try:
        yield
    except ImportError as error:
        project = _PROJECTS.get((error.name or "").split(".")[0])
        if project is None:
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        importer = "/".join(frame.filename.split("/")[-3:])
        raise ValueError(
            f"{project} does not fit the others: {error} (imported by {importer}); check out the versions that "
            f"scripts/install_ascend.sh names, and compare with `vita patches verify`"
        ) from error
