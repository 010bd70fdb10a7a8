"""Writes the table of MindSpeed-LLM's flags from its real parser, which it imports: needs torch_npu, or tests/integration/emulated_npu.

    PYTHONPATH=.:tests/integration/emulated_npu:UP/MindSpeed-LLM:UP/MindSpeed:UP/Megatron-LM \
        python scripts/upstream_flags.py 26.1.0 mindspeed_vita/integration/mindspeed_llm/upstream_flags/26.1.0.json
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from project_environment import packages_needed

with packages_needed():
    from mindspeed_vita.integration.mindspeed_llm.parser_table import describe, table_text


def upstream_parser() -> tuple[argparse.ArgumentParser, str]:
    """The parser that `pretrain` would use, and the folder of MindSpeed-LLM's checkout."""
    import mindspeed_llm
    from megatron.training import initialize

    seen: list[argparse.ArgumentParser] = []

    def remember(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        seen.append(parser)  # MindSpeed's features add to the same object afterwards
        return parser

    initialize.parse_args(remember, True)
    return seen[0], str(Path(mindspeed_llm.__path__[0]).resolve().parent)


def main(name: str, output: str) -> None:
    """Writes the table."""
    parser, root = upstream_parser()
    flags = describe(parser, root)
    Path(output).write_text(table_text(name, flags), encoding="utf-8")
    print(f"wrote {output}: {len(flags)} flags")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/upstream_flags.py NAME FILE")
    given, sys.argv[1:] = sys.argv[1:], []  # MindSpeed-LLM reads sys.argv when it is imported
    main(*given)
