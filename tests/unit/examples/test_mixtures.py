"""examples/mixtures: Table 1's ratios, the same sources and files in every stage, and the number of rows they draw."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mindspeed_vita.data.mixture import load_mixture

MIXTURES = Path(__file__).resolve().parents[3] / "examples" / "mixtures"

EARLY, GENERAL, LONG, FILMS = (1, 1, 0.1, 0.1), (0, 1, 0.1, 0.1), (0, 0, 1, 1), (0, 0, 0, 1)
"""Ratios in stages 1 to 4."""
VIDEO_178K = [f"lmms-lab/LLaVA-Video-178K_{length}_{kind}" for length in ("0_30_s", "30_60_s", "1_2_m", "2_3_m") for kind in ("cap", "qa")]
TABLE_1 = {
    "LLaVA-ReCap": EARLY, "ALLaVA": EARLY, "LVIS": GENERAL, "ShareGPT4V": EARLY, "the_cauldron": GENERAL, "Docmatix": EARLY,
    "LLaVA-OneVision-Mid-Data": EARLY, "LLaVA-OneVision-Data": GENERAL, "M4-Instruct-Data": GENERAL, "Comic-9K": LONG,
    "VideoGPT-plus_Training_Dataset": GENERAL, "Share14/ShareGemini_cap": GENERAL, **dict.fromkeys(VIDEO_178K, LONG), "Movie": FILMS,
    "OpenHermes": GENERAL, "lima": GENERAL, "databricks-dolly-15k": GENERAL, "MetaMathQA": GENERAL, "MathInstruct": GENERAL,
    "orca-math-word-problems-200k": GENERAL, "atlas-math-sets": GENERAL, "goat": GENERAL, "camel-ai": GENERAL,
    "Long-Instruction-with-Paraphrasing": LONG, "Long": LONG,
}  # fmt: skip


def entries(stage: int) -> dict[str, dict]:
    return yaml.safe_load((MIXTURES / f"stage{stage}.yaml").read_text())["dataset"]


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_a_stage_has_the_ratios_of_table_1(stage):
    assert {name: entry["ratio"] for name, entry in entries(stage).items()} == {name: row[stage - 1] for name, row in TABLE_1.items()}


@pytest.mark.parametrize("stage", [2, 3, 4])
def test_only_ratios_differ_between_stages(stage):
    def rest(number: int) -> dict[str, dict]:
        return {name: {key: value for key, value in entry.items() if key != "ratio"} for name, entry in entries(number).items()}

    assert rest(stage) == rest(1)


def test_files_are_named_once_and_below_data_root(tmp_path, monkeypatch):
    paths = [path for entry in entries(4).values() for path in entry["data_paths"]]
    assert len(set(paths)) == len(paths) > 150
    assert all(path.startswith("${DATA_ROOT}/datasets/jsonl/") and path.endswith(".jsonl") for path in paths)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    with pytest.raises(ValueError, match=rf"found no file for LLaVA-ReCap: {tmp_path}/datasets/jsonl/lmms-lab/.*and \d+ more"):
        load_mixture(MIXTURES / "stage1.yaml")
