"""What a script does where the packages of the project's environment are missing: it ends with one line that says what to run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

ADVICE = "run: source .venv/bin/activate (scripts/setup_env.sh makes it)"


@contextmanager
def packages_needed() -> Iterator[None]:
    """Around the imports of a script that need the environment. Warnings of megatron.core that nobody can act on stay away."""
    try:
        from mindspeed_vita.quiet import quiet_imports

        quiet_imports()
        yield
    except ModuleNotFoundError as error:
        sys.exit(f"{sys.argv[0]}: {error.name} is missing in {sys.executable}; {ADVICE}")
