"""The guides name files that exist, commands that exist, and the versions of the doctor's table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mindspeed_vita.checkpoint.hf.weights import native_tensors
from mindspeed_vita.checks.doctor import matrix
from mindspeed_vita.cli.main import COMMANDS
from mindspeed_vita.config import recipe_from_dict

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [*sorted((ROOT / "docs" / "guides").glob("*.md")), ROOT / "docs" / "finetune.md", *sorted((ROOT / "docs").glob("add_*.md"))]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_links_scripts_and_commands_exist(guide: Path):
    text = guide.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    missing = [link for link in links if link and not (guide.parent / link).exists()]
    paths = re.findall(r"\b(?:scripts|examples|docs|docker|tests)/[\w./-]*\w(?![\w{])", text)
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert not missing
    commands = set(re.findall(r"(?:^|`)vita (\w+)", text, re.MULTILINE))
    assert commands <= set(COMMANDS) and (commands or "DRY_RUN" in text), "a guide names what to run"


def test_the_page_of_versions_shows_the_whole_table():
    text = (ROOT / "docs" / "guides" / "versions.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("| ")]
    table = {row[0]: row[1:] for row in rows}
    torches = table["CANN"]
    assert torches[0] == "torch 2.7.1"
    shown = {
        (cann, torch.removeprefix("torch "), wheel)
        for cann in ("9.1.0", "9.0.0", "8.5.0", "8.3.RC1") for torch, wheel in zip(torches, table[cann]) if wheel
    }  # fmt: skip
    assert shown == {(row.cann, row.torch, row.wheel) for row in matrix.TORCH_NPU}
    for wanted in (matrix.ASCEND.torch_npu, matrix.ASCEND.transformers, *(project.ref for _, project in matrix.ASCEND.projects)):
        assert wanted in text


def test_the_bytes_of_a_checkpoint_are_those_of_the_recipes():
    text = (ROOT / "docs" / "guides" / "stages.md").read_text(encoding="utf-8")
    for preset in ("7b", "14b", "72b"):
        sizes = dict.fromkeys(("vision", "projector", "language"), 0)
        for name, tensor in native_tensors(recipe_from_dict({"model": {"preset": preset}}).model).items():
            sizes[name.split(".")[0]] += tensor.numel()
        weights = 2 * sum(sizes.values())
        trained = (sizes["projector"], sum(sizes.values()), sizes["projector"] + sizes["language"])
        cells = " | ".join(f"{(weights + 12 * count) / 1e9:,.1f} GB" for count in trained)
        assert f"\n| {preset.upper()} | {cells} |\n" in text
