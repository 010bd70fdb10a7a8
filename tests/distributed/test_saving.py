"""A save writes what gathering the optimizer would write, sends none of it, and leaves each data-parallel rank less to write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.checkpoint.native import shards
from mindspeed_vita.cli.main import main
from mindspeed_vita.config import recipe_to_dict
from mindspeed_vita.files.safetensors_file import SafetensorsFile
from tests.distributed.saving_runs import Sent
from tests.pools import OVERLAYS, Pools
from tests.tiny_data import VOCABULARY, TinyData

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
SAVE, BEHIND = (f"tests.distributed.saving_runs:{name}" for name in ("save_both_ways", "behind"))
Content = Callable[..., dict[str, Any]]


@pytest.fixture
def content(tiny: TinyData) -> Content:
    def build(directory: Path, *, parallel: Any = None, **sections: Any) -> dict[str, Any]:
        recipe = recipe_to_dict(tiny.recipe(directory, **sections))
        return {**recipe, "parallel": {**recipe["parallel"], **(parallel or {})}}

    return build


ODD_HEADS = {"tile_size": 28, "patch_size": 7, "hidden_size": 48, "num_layers": 2, "num_heads": 3, "ffn_hidden_size": 64}
CASES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "bf16": ({"tp": 2, "dp": 2}, {"train": {"precision": "bf16"}}),
    "tied": ({"pp": 2, "dp": 2}, {"model": {"language": {"num_layers": 2, "tie_embeddings": True}}}),
    "context-parallel": ({"cp": 2, "dp": 2}, {}),
    "frozen-tower": ({"dp": 3}, {"train": {"precision": "bf16", "modules": ["projector", "language"], "global_batch": 3}}),
    "zero-heads": ({"tp": 2, "dp": 2}, {"model": {"vision": ODD_HEADS}, "parallel": {"vision_parallel": "tensor"}}),
    "interleaved": ({"pp": 2, "dp": 2}, {"model": {"language": {"num_layers": 4}}, "parallel": {"virtual_stages": 2}}),
}
"""A layout, and what a recipe says."""


@pytest.mark.parametrize(("line", "case"), [*(("installed", case) for case in CASES), *((line, "bf16") for line in OVERLAYS)])
def test_a_step_holds_what_gathering_would_have_written(pools: Pools, content: Content, tmp_path: Path, line: str, case: str) -> None:
    sizes, sections = CASES[case]
    pools(line).run(SAVE, **sizes, content=content(tmp_path / "run", **sections), gathered=str(tmp_path / "gathered"))
    for part in ("weights", "optimizer"):
        ours, theirs = (shards.Reader(folder / part) for folder in (native.find(tmp_path / "run"), tmp_path / "gathered"))
        assert ours.keys() == theirs.keys()
        for key in ours.keys():
            one, other = ours.tensor(key), theirs.tensor(key)
            # not bit for bit in one way: where ranks added zeros, a negative zero became a positive one
            assert one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other), key
        assert any(bool(ours.tensor(key).count_nonzero()) for key in ours.keys())


def test_commands_read_a_step_that_ranks_wrote_in_ranges(pools: Pools, content: Content, tmp_path: Path) -> None:
    run, gathered = tmp_path / "run", tmp_path / "gathered"
    pools("installed").run(SAVE, tp=2, dp=2, content=content(run, train={"precision": "bf16"}), gathered=str(gathered))
    assert any("@" in name for path in native.find(run).glob("optimizer/*") for name in SafetensorsFile(path).entries), "nothing was cut"
    assert main(["checkpoint", "list", str(run)]) == 0 and main(["checkpoint", "verify", str(run)]) == 0
    assert main(["checkpoint", "reshard", str(run), "--output", str(tmp_path / "whole")]) == 0
    for source, form in (("run", "mindspeed-llm"), ("mindspeed-llm", "native")):
        assert main(["convert", "--from", str(tmp_path / source), "--to", form, "--output", str(tmp_path / form), "--optimizer"]) == 0
    theirs = shards.Reader(gathered / "optimizer")
    for folder in (tmp_path / "whole", tmp_path / "native"):
        ours = shards.Reader(native.find(folder) / "optimizer")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours.tensor(key), theirs.tensor(key)) for key in ours.keys())


def held(step: Path, part: str) -> list[int]:
    """Bytes of tensors that each rank wrote."""
    files = [SafetensorsFile(path) for path in sorted((step / part).glob("*.safetensors"))]
    return [sum(entry.stop - entry.start for entry in file.entries.values()) for file in files]


def test_no_tensor_is_sent_and_ranks_write_less_the_more_they_are(pools: Pools, content: Content, tmp_path: Path) -> None:
    written: dict[str, dict[str, list[int]]] = {}
    sent: dict[str, int] = {}
    vocabulary = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}

    def save(name: str, dp: int, **language: int) -> None:
        told = content(tmp_path / name, model={"language": {**vocabulary, **language}})
        found: list[tuple[list[Sent], list[Sent]]] = pools("installed").run(
            SAVE, dp=dp, content=told, gathered=str(tmp_path / f"old-{name}")
        )
        for saving, gathering in found:
            assert {tensor.dtype for tensor in saving} <= {torch.uint8, torch.int64}, "objects and lengths only"
            assert torch.float32 in {tensor.dtype for tensor in gathering}, "nothing was counted"
        sent[name] = max(sum(tensor.size for tensor in saving) for saving, _ in found)
        written[name] = {part: held(native.find(tmp_path / name), part) for part in ("weights", "optimizer")}

    for dp in (1, 2, 4):
        save(f"dp{dp}", dp, ffn_hidden_size=64)
    save("wide", 2, ffn_hidden_size=960)
    for part in ("weights", "optimizer"):
        (alone,) = written["dp1"][part]
        for dp in (2, 4):
            each = written[f"dp{dp}"][part]
            assert sum(each) == alone and len(each) == dp and max(each) < 1.05 * alone / dp
    assert sum(written["wide"]["optimizer"]) > 3 * sum(written["dp2"]["optimizer"])
    assert sent["wide"] < 1.02 * sent["dp2"], "what is sent does not follow the tensors' sizes, only the digits of their shapes"


@pytest.mark.parametrize(
    ("fault", "ends"),
    [
        ("", "step_0000001"),
        ("disk", "SaveFailed: cannot save into"),
        ("memory", "SaveFailed: cannot save into"),
        ("taken", "ValueError: another run has the folder"),
    ],
    ids=["published", "full-disk", "no-memory", "folder-taken"],
)
def test_a_background_save_is_published_while_training_goes_on(pools: Pools, tmp_path: Path, fault: str, ends: str) -> None:
    """No rank waits for another: the first rank's thread publishes once all have written, and all hear the same of a failure."""
    found = pools("installed").run(BEHIND, dp=3, folder=str(tmp_path), fault=fault)
    assert all(outcome.startswith(ends) for _, outcome, _ in found), found
    assert len({outcome for _, outcome, _ in found}) == 1
    assert all(seen == (not fault) and not keys for seen, _, keys in found), found
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == {"": ["step_0000001"], "disk": [], "memory": [], "taken": [".writing-step_0000001"]}[fault]
    if not fault:
        states = shards.Reader(tmp_path / "step_0000001")
        assert [states.tensor(f"{rank}/cpu").item() for rank in range(3)] == [0, 1, 2]
