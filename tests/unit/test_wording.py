"""Numbers in sentences."""

from mindspeed_vita.wording import counted


def test_one_thing_and_many():
    assert [counted(number, "step") for number in (0, 1, 2, 2000)] == ["0 steps", "1 step", "2 steps", "2,000 steps"]
    assert [counted(number, "process", "processes") for number in (1, 3)] == ["1 process", "3 processes"]
