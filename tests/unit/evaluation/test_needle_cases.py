"""What a needle test asks: haystacks that lengths and depths share, needles that the question needs, a control that shows no answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindspeed_vita.evaluation.needle_cases import NUM_NEEDLES, TASKS, Case, Haystack
from mindspeed_vita.evaluation.needle_frames import COLOURS, SHAPES, WALLS, Card, Hay

SEEDS = st.integers(0, 10**6).map(str)


@given(SEEDS, st.sampled_from(sorted(TASKS)), st.integers(NUM_NEEDLES, 200), st.floats(0, 1), st.integers(0, 9).filter(lambda n: n != 1))
def test_only_needles_have_the_wall_that_is_asked_about(seed: str, task: str, length: int, depth: float, every: int) -> None:
    case = Case(haystack=Haystack(seed=seed, distractor_every=every), task=task, length=length, depth=depth)
    frames = case.frames()
    assert len(frames) == length and len(set(case.places)) == len(case.needles) == TASKS[task].num_needles
    shown = [(place, frame) for place, frame in enumerate(frames) if isinstance(frame, Card) and frame.wall == case.haystack.wall]
    assert shown == list(zip(case.places, case.needles))
    others = [place for place, frame in enumerate(frames) if isinstance(frame, Card) and frame.wall != case.haystack.wall]
    if every:
        assert len({place // every for place in others}) == len(others), "at most one distractor in a stretch"
        assert len(others) >= length // every - len(case.places)
    else:
        assert not others


@given(SEEDS, st.sampled_from(sorted(TASKS)), st.floats(0, 1), st.floats(0, 1))
def test_frames_are_the_same_up_to_the_first_needle_whatever_the_length(seed: str, task: str, depth: float, other: float) -> None:
    haystack = Haystack(seed=seed)
    long, short = (Case(haystack=haystack, task=task, length=length, depth=at) for length, at in ((150, depth), (40, other)))
    same = min(long.places[0], short.places[0])
    assert long.frames()[:same] == short.frames()[:same] == [haystack.frame(place) for place in range(same)]


@given(SEEDS, st.sampled_from(sorted(TASKS)), st.integers(NUM_NEEDLES, 99), st.floats(0, 1))
def test_a_control_differs_in_the_shapes_of_its_needles_only(seed: str, task: str, length: int, depth: float) -> None:
    asked = {"haystack": Haystack(seed=seed), "task": task, "length": length, "depth": depth}
    case, control = Case(**asked), Case(**asked, blank=True)
    differ = [place for place, (one, other) in enumerate(zip(case.frames(), control.frames())) if one != other]
    assert differ == list(case.places)
    assert all(control.frames()[place] == Card(case.haystack.wall, "", "", needle.number) for place, needle in zip(differ, case.needles))
    assert (case.question, case.expected) == (control.question, control.expected) and case.key != control.key


def test_answers_of_a_control_are_at_chance_for_whoever_answers() -> None:
    """A reader of everything but the needles, who names the first distractor's colour, is right as often as the chance says."""
    right = dict.fromkeys(("colour", "shape", "nth"), 0)
    for number in range(1200):
        for task in right:
            case = Case(haystack=Haystack(seed=str(number)), task=task, length=16, depth=0.5, blank=True)
            distractor = next((frame for frame in case.frames() if isinstance(frame, Card) and frame.shape), None)
            word = "" if distractor is None else distractor.shape if task == "shape" else distractor.colour
            right[task] += case.is_right(word)
    for task, hits in right.items():
        assert abs(hits / 1200 - TASKS[task].chance) < 0.05, task  # four deviations of the shapes are 0.05


def test_words_of_walls_shapes_and_colours_are_never_the_same() -> None:
    assert not set(WALLS) & set(COLOURS) and not set(SHAPES) & set(COLOURS)


@pytest.mark.parametrize(
    ("task", "answer", "right"),
    [
        ("colour", "{0}.", True),
        ("colour", "The ball in front of the black wall is {0}. {0}!", True),
        ("colour", "{0} or {1}", False),
        ("colour", "", False),
        ("colour", "In{0}", False),
        ("order", "{0}, {1}, {2}", True),
        ("order", "First {0}, then {1}; at last {2}.", True),
        ("order", "{0}, {2}, {1}", False),
        ("order", "{0}, {1}", False),
    ],
)
def test_an_answer_is_right_if_it_names_the_expected_words_and_no_other(task: str, answer: str, right: bool) -> None:
    case = Case(haystack=Haystack(seed="one"), task=task, length=8, depth=0)
    words = [*case.expected, *(colour for colour in COLOURS if colour not in case.expected)]
    assert case.is_right(answer.format(*words).capitalize()) is right


@pytest.mark.parametrize(("task", "length", "depth", "places"), [
    ("colour", 10, 0, (0,)), ("colour", 10, 1, (9,)), ("colour", 11, 0.5, (5,)), ("colour", 1, 0.7, (0,)),
    ("order", 9, 0, (0, 3, 6)), ("order", 9, 1, (6, 7, 8)), ("nth", 3, 0.4, (0, 1, 2)),
])  # fmt: skip
def test_where_needles_stand(task: str, length: int, depth: float, places: tuple[int, ...]) -> None:
    assert Case(haystack=Haystack(seed="one"), task=task, length=length, depth=depth).places == places


def test_a_pool_limits_the_different_frames() -> None:
    frames = [Haystack(seed=str(seed), pool=2).frame(place) for seed in range(50) for place in range(20)]
    assert {frame for frame in frames if isinstance(frame, Hay)} == {Hay(0), Hay(1)}
    assert {frame.number for frame in frames if isinstance(frame, Card)} == {0, 1}
