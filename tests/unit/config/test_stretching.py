"""`--rope-scaling`: what it changes, and one message for each mistake."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mindspeed_vita.config import RopeScalingConfig, stretched
from tests.tiny_checkpoint import TINY


@pytest.mark.parametrize(
    ("text", "scaling", "positions"),
    [
        ("{kind: linear, factor: 4}", RopeScalingConfig(kind="linear", factor=4.0), 16384),
        ("{kind: ntk, factor: 2.5}", RopeScalingConfig(kind="ntk", factor=2.5), 10240),
        ("{kind: yarn, factor: 8, original_positions: 2048}", RopeScalingConfig(kind="yarn", factor=8.0, original_positions=2048), 16384),
        ("{kind: yarn, factor: 2, original_positions: 64}", RopeScalingConfig(kind="yarn", factor=2.0, original_positions=64), 4096),
        ("{kind: none}", RopeScalingConfig(), 4096),
    ],
)
def test_positions_are_scaled_and_their_number_grows(text: str, scaling: RopeScalingConfig, positions: int) -> None:
    before = replace(TINY, language=replace(TINY.language, rope_scaling=RopeScalingConfig(kind="linear", factor=3.0)))
    for model in (TINY, before):
        assert stretched(model, text) == replace(TINY, language=replace(TINY.language, rope_scaling=scaling, max_positions=positions))


def test_long_lists_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "longrope.yaml"
    path.write_text("kind: longrope\nfactor: 2\noriginal_positions: 4096\nshort_factor: [1, 1, 1, 1]\nlong_factor: [1, 2, 3, 4]\n")
    language = stretched(TINY, str(path)).language
    assert language.rope_scaling.long_factor == (1.0, 2.0, 3.0, 4.0) and language.max_positions == 8192


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yarn", "--rope-scaling yarn: no such file, and no mapping such as {kind: linear, factor: 4}"),
        ("{kind: yarn", "--rope-scaling: not valid YAML"),
        ("{kind: yarn, kind: linear}", "--rope-scaling: .*kind"),
        ("{kind: yran, factor: 2}", "--rope-scaling: kind='yran'; expected one of none, linear, ntk, yarn, .* did you mean yarn"),
        ("{kind: yarn, factors: 2}", "--rope-scaling: unknown key factors; did you mean factor"),
        ("{kind: yarn, factor: two}", "--rope-scaling: factor='two'; expected a number"),
        ("{kind: linear}", "--rope-scaling: found kind; expected factor as well"),
        ("{kind: yarn}", "--rope-scaling: found kind; expected factor and original_positions as well"),
        ("{factor: 4}", "--rope-scaling: found factor; expected kind as well"),
        ("{kind: linear, factor: 0.5}", r"--rope-scaling: model: model.language.rope_scaling.factor=0.5; expected at least 1"),
        (
            "{kind: longrope, factor: 2, original_positions: 64, long_factor: [1]}",
            "short_factor has 0 numbers; expected 4, one for each .*long_factor has 1 numbers; expected 4",
        ),
    ],
)
def test_a_mistake_gets_one_message(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stretched(TINY, text)
