"""The page docs/mindspeed_llm_flags.md, made from the table of verdicts and the tables of the parsers."""

from __future__ import annotations

from mindspeed_vita.integration.mindspeed_llm.parser_table import PINNED, read_table, tables
from mindspeed_vita.integration.mindspeed_llm.verdicts import HONOURED, NO_EFFECT, REFUSED, Verdict, verdicts

_HEAD = """# Every flag of MindSpeed-LLM, and what this package does with it

Made from mindspeed_vita/integration/mindspeed_llm/upstream_flags/verdicts.toml by `python scripts/flags_page.py`; do not edit it here.
The list of flags is that of MindSpeed-LLM's real parser (MindSpeed-LLM, MindSpeed and Megatron-LM together), for {versions}:
{total} flags, of which {honoured} are honoured, {refused} are refused and {unused} have no effect.

- **Honoured**: the flag does what upstream's documentation says. Where the table names values, all other values are refused.
- **Refused**: the run stops at the start, with the reason and with what to use. The default value is always accepted.
- **No effect**: the first rank prints one line at the start that says why.

The verdicts come from reading upstream's sources at those commits. [results/mindspeed_llm.md](results/mindspeed_llm.md) says which flags
were also run.
"""


def page() -> str:
    """The whole page, as Markdown."""
    counts = {kind: sum(len(group.flags) for group in verdicts() if group.verdict == kind) for kind in (HONOURED, REFUSED, NO_EFFECT)}
    versions = " and ".join(sorted(tables(), key=lambda name: name != PINNED))
    numbers = {"honoured": counts[HONOURED], "refused": counts[REFUSED], "unused": counts[NO_EFFECT]}
    head = _HEAD.format(versions=versions, total=sum(counts.values()), **numbers)
    parts = [head, _only_in_others()]
    for title in dict.fromkeys(group.title for group in verdicts()):
        groups = [group for group in verdicts() if group.title == title]
        lines = [f"## {title}", "", "| flags | | why | use |", "|---|---|---|---|"]
        lines += [_row(group) for kind in (HONOURED, REFUSED, NO_EFFECT) for group in groups if group.verdict == kind]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(part for part in parts if part)


def _row(group: Verdict) -> str:
    flags = ", ".join(f"`{flag}`" for flag in group.flags)
    kind = group.verdict
    if kind == HONOURED and group.only:
        values = (_value(value) for value in group.only)
        kind += ": " + ("must be given" if isinstance(group.only[0], bool) else " or ".join(values))
    return f"| {flags} | {kind} | {group.why} | {group.use} |"


def _value(value: object) -> str:
    return "not given" if value is None else " ".join(value) if isinstance(value, list) else f"`{value}`"


def _only_in_others() -> str:
    flags = {name: {flag for entry in read_table(path) for flag in entry["flags"]} for name, path in tables().items()}
    lines = []
    for name in sorted(set(flags) - {PINNED}):
        more = sorted(flags[name] - flags[PINNED])
        if more:
            lines.append(f"Only in {name}: {', '.join(f'`{flag}`' for flag in more)}.\n")
    return "\n".join(lines)
