"""The pages name files, commands, options, recipe keys and sections that exist, and the versions of the doctor's table."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from mindspeed_vita.checkpoint.hf.weights import native_tensors
from mindspeed_vita.checks.doctor import matrix
from mindspeed_vita.cli.main import COMMANDS, actions_of, add_arguments
from mindspeed_vita.config import Recipe, recipe_from_dict

ROOT = Path(__file__).resolve().parents[2]
GUIDES = [*sorted((ROOT / "docs" / "guides").glob("*.md")), ROOT / "docs" / "finetune.md", *sorted((ROOT / "docs").glob("add_*.md"))]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


@functools.cache
def options_of(command: str, action: str) -> frozenset[str]:
    parser = argparse.ArgumentParser()
    add_arguments(parser, command, action)
    return frozenset(parser._option_string_actions)


def code_of(text: str) -> Iterator[str]:
    """Lines of the fenced blocks, continued lines joined, and what stands between backticks."""
    text = text.replace("\\\n", " ")
    for block in _FENCE.findall(text):
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", _FENCE.sub("", text))


def wrong_options(line: str) -> list[str]:
    """Options of vita and of this project's scripts in a line of code that their programs do not have."""
    wrong = []
    for command, rest in re.findall(r"(?:\bvita|mindspeed_vita\.cli\.main) (\w+)([^|;&]*)", line):
        words = rest.partition(" -- ")[0].partition(" #")[0].split()
        actions = actions_of(command) if command in COMMANDS else {}
        if command not in COMMANDS or (actions and not (words and words[0] in actions)):
            continue
        known = options_of(command, words[0] if actions else "")
        named = {word.strip("[](),.").partition("=")[0] for word in words if word.strip("[](),.").startswith("--")}
        wrong += [f"vita {command} {option}" for option in named - known]
    script = re.match(r"(?:[A-Z_0-9]+=\S+ )*(?:python|bash) (?:-m )?([\w./]+)(.*)", line.strip())
    if script:
        name, rest = script.groups()
        places = (ROOT / name, ROOT / f"{name.replace('.', '/')}.py", ROOT / name.replace(".", "/") / "__main__.py")
        source = next((place.read_text(encoding="utf-8") for place in places if place.is_file()), None)
        words = [word for word in rest.partition(" #")[0].partition(" -- ")[0].split() if re.match("--[a-z]", word)]
        wrong += [f"{name} {word}" for word in words if source is not None and word.partition("=")[0] not in source]
    return wrong


def keys_of(cls: type, prefix: str = "") -> Iterator[str]:
    """Every key of a recipe, with its sections."""
    for name, kind in typing.get_type_hints(cls).items():
        yield prefix + name
        for section in (kind, *typing.get_args(kind)):
            if dataclasses.is_dataclass(section) and isinstance(section, type):
                yield from keys_of(section, f"{prefix}{name}.")


def headings_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    titles = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).replace("`", "").lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


def test_the_check_of_options_finds_a_wrong_one():
    assert wrong_options("vita train a.yaml --resume-form b   # --no") == ["vita train --resume-form"]
    assert wrong_options("bash scripts/quickstart.sh --smok3") == ["scripts/quickstart.sh --smok3"]
    assert not wrong_options("torchrun -m mindspeed_vita.cli.main eval loss runs/a --tp 2 -- --other") and not wrong_options("vita eval")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_options_keys_and_sections_that_a_page_names_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    wrong = [option for line in code_of(text) for option in wrong_options(line)]
    keys = set(keys_of(Recipe))
    sections = "|".join({key.partition(".")[0] for key in keys if "." in key})
    named = set(re.findall(rf"(?<![\w./])((?:{sections})\.\w+(?:\.\w+)*)(?![\w/(])", text))
    wrong += [key for key in named - keys if not re.search(r"\.(py|md|yaml|json|jsonl|html|svg|prom)$", key)]
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        target = (page.parent / name if name else page).resolve()
        if link.startswith("http"):
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in headings_of(target)):
            wrong.append(link)
    assert not wrong


def test_the_tested_releases_of_the_trainer_are_the_same_everywhere():
    from mindspeed_vita.integration.hf_trainer.settings import TESTED

    for place in ("setup.py", "docs/guides/deepspeed.md"):
        text = (ROOT / place).read_text(encoding="utf-8")
        assert all(f'"{name}=={release}"' in text for name, release in TESTED.items()), place


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
