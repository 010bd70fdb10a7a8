"""Trains the tokenizer of the needle example on the texts of its rows.

    python examples/needle/make_tokenizer.py --rows runs/needle/short/rows.jsonl --out runs/needle/tokenizer
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))
from project_environment import packages_needed

with packages_needed():
    from mindspeed_vita.data.tiny_tokenizer import train_tokenizer

VOCAB_SIZE = 512
"""As in the recipes; the texts yield fewer entries."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="JSONL file of rows")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.rows.read_text(encoding="utf-8").splitlines()]
    texts = [turn["content"].replace("<video>", "") for row in rows for turn in row["messages"]]
    entries = train_tokenizer([*texts, *["system user assistant"] * len(rows)], VOCAB_SIZE, args.out)
    print(f"{entries} entries in {args.out}")


if __name__ == "__main__":
    main()
