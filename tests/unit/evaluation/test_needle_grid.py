"""The grid of a needle test: what it refuses, and that its order lets a small cache serve it."""

from __future__ import annotations

from typing import Any

import pytest

from mindspeed_vita.evaluation.needle_count import Cost, check_lengths, count
from mindspeed_vita.evaluation.needle_grid import Grid, evenly
from mindspeed_vita.inference.prompt import PromptEncoder
from tests.tiny_checkpoint import make_tokenizer, tiny_recipe

GOOD: dict[str, Any] = {"lengths": (4, 8), "depths": (0.0, 1.0)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lengths": ()}, "lengths (none): expected one or more values, each once"),
        ({"lengths": (8, 8)}, "lengths 8, 8"),
        ({"depths": (0.5, 1.01)}, "depth 1.01 lies outside 0 to 1; 0 is the first frame"),
        ({"depths": (-0.1,)}, "depth -0.1 lies outside 0 to 1"),
        ({"depths": (float("nan"),)}, "depth nan lies outside 0 to 1"),
        ({"tasks": ("colour", "taste")}, "task 'taste' is unknown; expected some of colour, shape, nth, order"),
        ({"lengths": (2,), "tasks": ("order",)}, "a haystack of 2 frames; expected 3 (the needles of a task) to 16,384 frames"),
        ({"lengths": (0,)}, "a haystack of 0 frames"),
        ({"lengths": (20000,)}, "a haystack of 20000 frames"),
        ({"media": "sound"}, "media 'sound' is unknown; expected one of video, pictures"),
        ({"wall": "red"}, "wall 'red' is unknown; expected one of black, white, or none for either"),
        ({"samples": 0}, "samples=0"),
        ({"distractor_every": 1}, "distractor_every=1; expected at least 1 sample, and a distractor every 2 frames or more"),
    ],
)
def test_a_grid_that_makes_no_test_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Grid(**{**GOOD, **changed})
    assert message in str(caught.value)


def test_depths_are_even() -> None:
    assert evenly(2) == (0, 1) and evenly(5) == (0, 0.25, 0.5, 0.75, 1)
    with pytest.raises(ValueError, match="1 depths; expected at least 2"):
        evenly(1)


def test_every_request_is_asked_once_and_has_a_name_of_its_own() -> None:
    grid = Grid(lengths=(5, 3), depths=(0, 1 / 3, 0.33333334), tasks=("shape", "order"), samples=3, control=True)
    cases = grid.cases()
    assert len(cases) == len({case.key for case in cases}) == 2 * 3 * 2 * 3 * 2
    assert len({case.key for case in Grid(**{**grid.settings(), "seed": 1}).cases()} & {case.key for case in cases}) == 0


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    return PromptEncoder(tiny_recipe(max_frames=128), make_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def test_tokens_are_those_of_the_prompts_and_what_is_shared_is_computed_once(prompts: PromptEncoder) -> None:
    grid = Grid(lengths=(128,), depths=(0.0, 0.5, 1.0), samples=1, tasks=("colour", "shape"))
    (cost,) = count(grid.cases(), prompts, "video").values()
    # a frame is 4 + 2 tokens: 128 of them fill 3 blocks of 256. Two of the six prompts compute all of it, those at depth 0.5 begin with
    # the block that ends before the needle, and the second question of each pair computes what follows its last full block
    assert (cost.requests, cost.frames) == (6, 768)
    rest = cost.longest - 3 * 256
    assert 0 < rest < 256 and abs(cost.tokens - 6 * cost.longest) < 6 * 30
    assert cost.tokens - cost.computed == 3 * 3 * 256 + 256
    assert cost.reused == 1 - cost.computed / cost.tokens


def test_lengths_share_their_beginning(prompts: PromptEncoder) -> None:
    """At depth 0 the needle is the same at each length, so a shorter haystack is the beginning of a longer one."""
    grid = Grid(lengths=(64, 128), depths=(0.0,), samples=1, tasks=("colour",))
    costs = count(grid.cases(), prompts, "video")
    assert [cost.tokens - cost.computed for cost in costs.values()] == [256, 0]


def test_pictures_are_counted_too(prompts: PromptEncoder) -> None:
    grid = Grid(lengths=(60,), depths=(0.0, 1.0), samples=1, tasks=("colour",), media="pictures")
    (cost,) = count(grid.cases(), prompts, "pictures").values()
    assert cost.frames == 120 and cost.longest > 60 * 7 and cost.tokens - cost.computed == 0
    again = Grid(lengths=(60,), depths=(1.0,), samples=1, tasks=("colour", "shape"), media="pictures")
    (cost,) = count(again.cases(), prompts, "pictures").values()
    assert cost.tokens - cost.computed == 256


def test_costs_add_up() -> None:
    assert Cost(1, 4, 100, 60, 100) + Cost(2, 8, 50, 20, 30) == Cost(3, 12, 150, 80, 100)


def test_a_length_beyond_the_positions_names_the_remedies(prompts: PromptEncoder) -> None:
    grid = Grid(lengths=(16, 1000), depths=(0.5,))
    with pytest.raises(ValueError) as caught:
        check_lengths(grid, PromptEncoder(tiny_recipe(max_frames=1000), prompts.tokenizer))
    text = str(caught.value)
    assert "a haystack of 1000 frames takes 6," in text and "the model has 4,096: take lengths up to 6" in text
    assert "--rope-scaling" in text and "--frame-pooling" in text
    room = int(text.split("take lengths up to ")[1].split(",")[0])
    with pytest.raises(ValueError, match=f"take lengths up to {room},"):
        check_lengths(Grid(lengths=(room + 1,), depths=(0.5,)), PromptEncoder(tiny_recipe(max_frames=room + 1), prompts.tokenizer))
    check_lengths(Grid(lengths=(room,), depths=(0.5,)), PromptEncoder(tiny_recipe(max_frames=room), prompts.tokenizer))


def test_a_checkpoint_that_would_leave_frames_out_is_refused(prompts: PromptEncoder) -> None:
    slow = PromptEncoder(tiny_recipe(max_frames=128, max_fps=0.5), prompts.tokenizer)
    with pytest.raises(ValueError, match=r"of a video of 16 frames, one per second, 8 are taken: the checkpoint's data.max_fps is 0.5"):
        check_lengths(Grid(lengths=(16,), depths=(0.5,)), slow)
    check_lengths(Grid(lengths=(16,), depths=(0.5,), media="pictures"), slow)
