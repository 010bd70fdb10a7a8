"""Every flag of the real parsers has exactly one verdict, each verdict's advice exists, and the page is made from the table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mindspeed_vita.integration.mindspeed_llm.flag_page import page
from mindspeed_vita.integration.mindspeed_llm.flags import FIXED, MEGATRON, RECOMPUTE, VITA
from mindspeed_vita.integration.mindspeed_llm.parser_table import PINNED, build_parser, describe, read_table, tables
from mindspeed_vita.integration.mindspeed_llm.verdicts import HONOURED, NO_EFFECT, REFUSED, by_flag, judge, verdicts
from tests.unit.integration.mindspeed_llm.command_lines import good_line, parsed

ROOT = Path(__file__).resolve().parents[4]
FLAGS = {name: [flag for entry in read_table(path) for flag in entry["flags"]] for name, path in tables().items()}
_FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
OURS = {"--from", "--to", "--output", "--recipe", "--tp", "--pp", "--engine", "--print-megatron-args", "--nproc_per_node"}
"""Of `vita convert`, `vita train` and torchrun."""


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_every_flag_of_the_real_parser_has_a_verdict(name: str):
    assert len(FLAGS[name]) > 790
    unknown = [flag for flag in FLAGS[name] if flag not in by_flag()]
    assert not unknown, f"read upstream for these and add them to upstream_flags/verdicts.toml: {unknown}"


def test_no_flag_has_two_verdicts_and_none_is_made_up():
    listed = [flag for group in verdicts() for flag in group.flags]
    assert sorted(listed) == sorted(set(listed))
    assert set(listed) == {flag for flags in FLAGS.values() for flag in flags}


def test_a_verdict_says_what_to_do():
    for group in verdicts():
        assert group.verdict in (HONOURED, REFUSED, NO_EFFECT) and group.why and group.flags
        assert bool(group.use) == (group.verdict == REFUSED or (group.verdict == HONOURED and bool(group.only))), group
        assert not group.always or group.only, group


def test_no_refusal_names_a_flag_that_does_not_exist():
    known = {*FLAGS[PINNED], *VITA.values(), RECOMPUTE, *OURS}
    package = ROOT / "mindspeed_vita" / "integration" / "mindspeed_llm"
    texts = {path.name: path.read_text(encoding="utf-8") for path in [*package.glob("*.py"), *package.glob("upstream_flags/*.toml")]}
    texts["docs/mindspeed_llm.md"] = (ROOT / "docs" / "mindspeed_llm.md").read_text(encoding="utf-8")
    more = {*FLAGS["master-2026-08"], "--vita-model-vision-", "--vita-", "--vita-data", "--help"}
    for name, text in texts.items():
        unknown = {flag for flag in _FLAG.findall(text) if flag not in known and flag not in more}
        assert not unknown, f"{name} names {sorted(unknown)}"


@pytest.mark.parametrize("name", sorted(FLAGS))
def test_what_a_recipe_becomes_is_honoured_without_a_word(name: str):
    line = good_line()
    given = {word for word in line if word.startswith("--") and not word.startswith("--vita")}
    assert {flag for flag in given if by_flag()[flag].verdict == REFUSED} == set()
    assert judge(*parsed(line, name), given) == ([], [])
    assert {*MEGATRON.values(), *(word for word in FIXED if word.startswith("--"))} <= set(FLAGS[name])


def test_a_flag_of_a_later_parser_is_refused_where_it_is_given():
    parser, _ = parsed(good_line())
    parser.add_argument("--from-the-future", type=int, default=1)
    for words, expected in (([], 0), (["--from-the-future", "1"], 1)):
        arguments = parser.parse_args([*good_line(), *words])
        refused, _ = judge(parser, arguments, set(words))
        assert len(refused) == expected
    assert refused[0].startswith("--from-the-future: the table of flags, made for MindSpeed-LLM 26.1.0")


def test_a_refused_value_that_did_not_come_from_the_command_line_is_refused():
    parser, arguments = parsed(good_line())
    arguments.enable_worker_reboot = True  # upstream reads it from the environment
    assert [line.split(":")[0] for line in judge(parser, arguments, ())[0]] == ["--enable-worker-reboot"]


def test_a_table_reads_back_as_the_parser_it_describes():
    described = describe(build_parser())
    for found, written in zip(described, read_table(tables()[PINNED]), strict=True):
        same = {key: value for key, value in written.items() if key not in ("group", "type", "choices")}
        assert {key: found[key] for key in same} == same


def test_the_page_of_flags_is_current():
    found = (ROOT / "docs" / "mindspeed_llm_flags.md").read_text(encoding="utf-8")
    assert found == page(), "run python scripts/flags_page.py"
