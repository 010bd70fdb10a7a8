"""Numbers in sentences."""

from mindspeed_vita.wording import aligned, counted


def test_one_thing_and_many():
    assert [counted(number, "step") for number in (0, 1, 2, 2000)] == ["0 steps", "1 step", "2 steps", "2,000 steps"]
    assert [counted(number, "process", "processes") for number in (1, 3)] == ["1 process", "3 processes"]


def test_columns_of_a_table_are_aligned() -> None:
    lines = [("", "tokens", "share"), ("pictures", "1,234", "5%"), ("text", "9", "")]
    assert aligned(lines, left=1) == ["          tokens  share", "pictures   1,234     5%", "text           9"]
    assert aligned([("a", "bb"), ("ccc", "d")]) == ["  a  bb", "ccc   d"]
