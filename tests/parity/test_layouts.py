"""Every layout gives the loss and the gradients of one process, on both lines of megatron-core.

Worst seen: loss 5e-8 relative, gradients 9e-6 of the tensor's absmax (fp32 summation order).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_vita.checks.parity.check import LAYOUTS, RUN, compare, initial_weights
from mindspeed_vita.checks.parity.pool import LayoutPool

ALL = ("vision", "projector", "language")
CASES = [
    pytest.param(True, "masked", ALL, "none", id="resets"),
    pytest.param(False, "masked", ALL, "full", id="no-resets-recomputed"),
    pytest.param(True, "original", ALL, "selective", id="original-head-attention-recomputed"),
    pytest.param(False, "masked", ("projector", "language"), "none", id="frozen-tower"),
    pytest.param(True, "masked", ("projector",), "full", id="stage-1-recomputed"),
]

TENSOR_LAYOUTS = ((2, 1, 2, 1), (1, 1, 4, 1), (2, 2, 1, 1))
TENSOR_CASES = [case for case in CASES if case.id != "original-head-attention-recomputed"]


@pytest.fixture(scope="module")
def weights(layout_pool: LayoutPool) -> dict[str, torch.Tensor]:
    return initial_weights(layout_pool)


@pytest.fixture(scope="module")
def references(layout_pool: LayoutPool, weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    folder = str(tmp_path_factory.mktemp("reference"))

    def run(*case: Any) -> Any:
        """One process, which never recomputes."""
        return layout_pool.run(RUN, folder=folder, full=weights, **{**_arguments(*case), "recompute": "none"})[0]

    return {case.values: run(*case.values) for case in CASES}


def _arguments(resets: bool, head: str, modules: tuple[str, ...], recompute: str) -> dict[str, Any]:
    return {"resets": resets, "head": head, "modules": modules, "recompute": recompute}


def _runs() -> list[Any]:
    """Every layout under every case; then Ulysses and the tower cut over tensor parallelism, where they differ."""

    def runs(layouts: Any, cases: list[Any], kind: str, **extra: Any) -> list[Any]:
        names = {layout: "".join(map(str, layout)) for layout in layouts}
        return [pytest.param(layout, case.values, extra, id=f"{kind}{case.id}-{names[layout]}") for case in cases for layout in layouts]

    return [
        *runs(LAYOUTS, CASES, ""),
        *runs(((1, 1, 2, 1), (1, 1, 4, 1)), CASES[:2], "ulysses-2-", ulysses=2),
        *runs(((1, 1, 4, 1),), CASES[:2], "nodes-of-2-", pipeline={"cp_per_node": 2, "ring_two_groups": True}),
        *runs(TENSOR_LAYOUTS, TENSOR_CASES, "cut-tower-", vision_parallel="tensor"),
    ]


@pytest.mark.parametrize(("layout", "case", "extra"), _runs())
def test_layout_equals_one_process(
    layout_pool: LayoutPool,
    weights: dict[str, torch.Tensor],
    references: dict[Any, Any],
    tmp_path: Path,
    layout: tuple[int, int, int, int],
    case: tuple[Any, ...],
    extra: dict[str, Any],
) -> None:
    """The packs have tiles over the seams, one tile for two context ranks, and none."""
    found = layout_pool.run(RUN, *layout, folder=str(tmp_path), full=weights, **_arguments(*case), **extra)[0]
    result = compare(found, references[case])
    assert result.equal, result


UNEVEN = ({"stage_layers": [1, 3]}, {"stage_layers": [3, 1]}, {"layer_split": "balanced"})


@pytest.fixture(scope="module")
def tied(layout_pool: LayoutPool) -> dict[str, torch.Tensor]:
    """Weights of a decoder of four layers whose output layer is the table."""
    return initial_weights(layout_pool, language=TIED)


TIED = {"tie_embeddings": True, "num_layers": 4}


@pytest.mark.parametrize("modules", [ALL, ("projector",)], ids=["all", "stage-1"])
def test_stages_with_a_tied_table_and_uneven_stages_equal_one_process(
    layout_pool: LayoutPool, tied: dict[str, torch.Tensor], tmp_path: Path, modules: tuple[str, ...]
) -> None:
    """The table's gradient is the sum of the first and the last stage's; in stage 1 the table is frozen."""
    arguments = {"folder": str(tmp_path), "full": tied, "language": TIED, **_arguments(True, "masked", modules, "none")}
    reference = layout_pool.run(RUN, **arguments)[0]
    assert "language.output_layer.weight" not in reference[1]
    layouts = [((1, 2, 1, 1), {}), *(((1, 2, 1, 1), split) for split in UNEVEN), ((1, 2, 1, 2), UNEVEN[0]), ((2, 2, 1, 1), UNEVEN[1])]
    for layout, pipeline in layouts:
        result = compare(layout_pool.run(RUN, *layout, pipeline=pipeline, **arguments)[0], reference)
        assert result.equal, (layout, pipeline, result)


VIRTUAL = {"virtual_stages": 2}


@pytest.mark.parametrize("modules", [ALL, ("projector",)], ids=["all", "stage-1"])
def test_interleaved_stages_equal_one_process(
    layout_pool: LayoutPool, tied: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], tmp_path: Path, modules: tuple[str, ...]
) -> None:
    """With and without a table that both ends share; the tower is in the first chunk, the head in the last."""
    for language, full in (({"num_layers": 4}, weights), (TIED, tied)):
        arguments = {"folder": str(tmp_path), "full": full, "language": language, **_arguments(True, "masked", modules, "none")}
        reference = layout_pool.run(RUN, **arguments)[0]
        for layout, pipeline in (((1, 2, 1, 1), VIRTUAL), ((1, 2, 2, 1), VIRTUAL), ((2, 2, 1, 1), VIRTUAL), ((1, 2, 1, 2), VIRTUAL)):
            result = compare(layout_pool.run(RUN, *layout, pipeline=pipeline, **arguments)[0], reference)
            assert result.equal, (language, layout, result)


def test_three_stages_of_five_layers_equal_one_process(layout_pool: LayoutPool, tmp_path: Path) -> None:
    """pp does not divide the layers, and the middle stage has none of megatron's own numbers."""
    language = {"num_layers": 5}
    full = initial_weights(layout_pool, language=language)
    arguments = {"folder": str(tmp_path), "full": full, "language": language, **_arguments(True, "masked", ALL, "full")}
    result = compare(layout_pool.run(RUN, 1, 3, pipeline={"stage_layers": [1, 3, 1]}, **arguments)[0], layout_pool.run(RUN, **arguments)[0])
    assert result.equal, result
