"""Adapters merged as a model is loaded: the same weights by every way, under names of their own in the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mindspeed_vita.checkpoint import lineage
from mindspeed_vita.cli.after_training import results
from mindspeed_vita.cli.main import main
from mindspeed_vita.engine.session import shutdown
from mindspeed_vita.inference.block_names import root_name
from mindspeed_vita.inference.loading import find_model, load_model
from tests.integration.conftest import save_fresh_weights
from tests.tiny_data import TinyData, tiny  # noqa: F401 - a fixture

LORA = {"rank": 4, "alpha": 32, "targets": ["q_proj", "v_proj", "up_proj", "qkv", "mlp.2"], "parts": ["language", "vision", "projector"]}


@pytest.fixture(scope="module")
def folders(tiny: TinyData, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:  # noqa: F811 - the fixture above
    """The base, its export, adapters of some layers, other adapters, and the first ones as peft's files."""
    from mindspeed_vita.engine.loop import train

    folder = tmp_path_factory.mktemp("adapters")
    made = {name: folder / name for name in ("base", "export", "run", "other", "peft", "merged")}
    save_fresh_weights(tiny.recipe(made["base"]), made["base"])
    assert main(["convert", "--from", str(made["base"]), "--to", "hf", "--output", str(made["export"])]) == 0
    for name, steps in (("run", 3), ("other", 2)):
        told = tiny.recipe(made[name], lora=LORA, train={"steps": steps}, checkpoint={"init_from": str(made["base"])})
        train(told)
        assert any(f"--from {made[name]} --merge --to hf" in line for line in results(told))
    assert main(["convert", "--from", str(made["run"]), "--to", "peft", "--output", str(made["peft"])]) == 0
    assert main(["convert", "--from", str(made["run"]), "--merge", "--to", "native", "--output", str(made["merged"])]) == 0
    return made


def parameters(path: Path, **options: Any) -> dict[str, torch.Tensor]:
    loaded = load_model(path, **options)
    shutdown()
    return dict(loaded.model.named_parameters())


def test_every_way_gives_the_merged_weights(folders: dict[str, Path]):
    expected, plain = parameters(folders["merged"]), parameters(folders["base"])
    changed = {name.split(".", 1)[1] for name in expected if not torch.equal(expected[name], plain[name])}
    assert {"layers.1.self_attention.linear_qkv.weight", "linear_fc2.weight"} <= changed and len(changed) == 2 * 2 + 2 + 1
    ways = [
        (folders["run"], {}),
        (folders["base"], {"adapter": folders["run"]}),
        (folders["base"], {"adapter": folders["peft"]}),
        (folders["export"], {"adapter": folders["run"]}),  # the export has its source's fingerprint
        (folders["peft"], {}),
    ]
    for path, options in ways:
        found = parameters(path, **options)
        assert all(torch.equal(found[name], expected[name]) for name in expected), (path, options)


def test_the_names_of_cached_blocks_tell_adapters_apart(folders: dict[str, Path]):
    found = [find_model(folders["base"], adapter=adapter) for adapter in (None, folders["run"], folders["other"], folders["peft"])]
    assert len({root_name(model.identity) for model in found}) == len(found)


def test_vita_generate_takes_adapters(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]):
    texts = []
    for command in ([str(folders["run"])], [str(folders["base"]), "--adapter", str(folders["peft"])], [str(folders["merged"])]):
        assert main(["generate", *command, "--prompt", "Count to 3.", "--max-new-tokens", "6"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] and len(set(texts)) == 1


def test_what_does_not_go_together_is_refused(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, base, out = str(folders["run"]), str(folders["base"]), ["--output", str(tmp_path / "out")]
    refused = {
        "holds adapters only; add --merge": ["convert", "--from", run, "--to", "hf", *out],
        "holds no adapters, which --merge is for": ["convert", "--from", base, "--merge", "--to", "hf", *out],
        "--merge gives whole weights": ["convert", "--from", run, "--merge", "--to", "peft", *out],
        "is a native folder of adapters already": ["convert", "--from", run, "--to", "native", *out],
        "--dtype: adapters are converted as they are": ["convert", "--from", run, "--to", "peft", "--dtype", "bf16", *out],
        "holds adapters itself": ["generate", run, "--adapter", run, "--prompt", "?"],
        "holds whole weights, no adapters": ["convert", "--from", base, "--base", base, "--to", "native", *out],
        "holds no adapters; expected": ["generate", base, "--adapter", base, "--prompt", "?"],
    }
    for message, command in refused.items():
        assert main(command) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_merged_weights_say_once_which_weights_and_adapters_they_are_made_of(folders: dict[str, Path]):
    found, run, base = (lineage.of_checkpoint(folders[name]) for name in ("merged", "run", "base"))
    assert found.parents == (run,) and run.parents == (base,)
    assert lineage.of_checkpoint(folders["peft"]).parents == (run,)
