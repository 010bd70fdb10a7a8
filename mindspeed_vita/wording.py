"""Numbers in sentences and in tables, and text of others in them. The standard library alone, like choices.py."""

from __future__ import annotations

from collections.abc import Sequence


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number of things: "1 step", "2,000 steps".

    Args:
        number: how many.
        noun: one of them.
        plural: several of them, where that is not the noun with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def aligned(lines: Sequence[Sequence[str]], *, left: int = 0) -> list[str]:
    """The lines of a table, their columns as wide as the widest cell, with two spaces between them.

    Args:
        lines: the cells of each line, equally many in all lines.
        left: so many of the first columns begin at their left; the others, which hold numbers, end at their right.
    """
    widths = [max(map(len, column)) for column in zip(*lines)]

    def padded(cells: Sequence[str]) -> str:
        placed = [cell.ljust(width) if place < left else cell.rjust(width) for place, (cell, width) in enumerate(zip(cells, widths))]
        return "  ".join(placed).rstrip()

    return [padded(line) for line in lines]


def printable(text: object) -> str:
    """Text of a file without what moves a cursor or cannot be encoded."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))
