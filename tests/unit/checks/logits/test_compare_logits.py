"""Two checkpoints run layer by layer: equal ones are equal in every format, and each fault is named at its layer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.checkpoint.source import SourceOptions, open_source
from mindspeed_vita.checks.logits.compare import ALONE_TOLERANCE, LogitsComparison, compare_logits, measure
from mindspeed_vita.cli.main import main
from mindspeed_vita.config import LanguageConfig, ModelConfig
from tests.tiny_checkpoint import TINY, make_tokenizer, random_weights, tiny_recipe

POINTS = [
    *("vision.embeddings", "vision.layers.0", "vision.layers.1", "projector", "language.decoder.embeddings"),
    *("language.decoder.layers.0", "language.decoder.layers.1", "language.decoder.final_layernorm", "logits"),
]
OTHERS: dict[str, ModelConfig] = {
    "qwen3-tied": replace(TINY, language=replace(TINY.language, family="qwen3", head_width=12, tie_embeddings=True)),
    "siglip": replace(TINY, vision=replace(TINY.vision, tower="siglip", normalization="siglip")),
    "clip-newline": replace(
        TINY, vision=replace(TINY.vision, tower="clip", normalization="clip"), projector=replace(TINY.projector, kind="mlp_newline")
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in every format."""
    folder = tmp_path_factory.mktemp("logits")
    make_tokenizer(folder / "tokenizer")
    native.save_full_weights(folder / "native", random_weights(), tiny_recipe(tokenizer=str(folder / "tokenizer")))
    for to, name, more in (
        ("hf", "hf", []), ("hf", "bf16", ["--dtype", "bf16"]), ("internvl", "internvl", []),
        ("mindspeed-llm", "ranks", ["--tp", "2", "--pp", "2"]), ("megatron", "fused", ["--tp", "2"]),
    ):  # fmt: skip
        assert main(["convert", "--from", str(folder / "native"), "--to", to, "--output", str(folder / name), *more]) == 0
    return folder


def compared(first: Path, second: Path, **options: Any) -> LogitsComparison:
    sources = (open_source(first, SourceOptions()), open_source(second, SourceOptions()))
    return compare_logits((first, second), sources, lambda size: None, **options)


@pytest.mark.parametrize(
    ("first", "second", "by"),
    [
        ("native", "hf", ("our model code", "the exported modeling_long_vita.py")),
        ("native", "internvl", ("our model code", "transformers' InternVLForConditionalGeneration")),
        ("internvl", "bf16", ("transformers' InternVLForConditionalGeneration", "the exported modeling_long_vita.py")),
        ("ranks", "fused", ("our model code", "our model code")),
        ("hf", "hf", ("the exported modeling_long_vita.py",) * 2),
    ],
)
def test_one_model_computes_the_same_in_every_format(folder: Path, first: str, second: str, by: tuple[str, str]) -> None:
    found = compared(folder / first, folder / second)
    assert found.same and not found.problems and found.computed_by == by
    assert [point.name for point in found.points] == POINTS
    # the tolerance is six times the worst that was measured, 3e-6
    assert max(point.alone.share for point in found.points) <= ALONE_TOLERANCE / 2
    if first == second:
        assert all(point.from_start.largest == 0 for point in found.points)


@pytest.mark.parametrize("name", OTHERS)
def test_other_decoders_towers_and_projectors_compute_the_same(folder: Path, tmp_path: Path, name: str) -> None:
    recipe = tiny_recipe(OTHERS[name], tokenizer=str(folder / "tokenizer"))
    native.save_full_weights(tmp_path / "native", random_weights(OTHERS[name]), recipe)
    assert main(["convert", "--from", str(tmp_path / "native"), "--to", "hf", "--output", str(tmp_path / "hf")]) == 0
    found = compared(tmp_path / "native", tmp_path / "hf")
    assert found.same, found.problems
    assert ("vision.final_layernorm" in [point.name for point in found.points]) == (name == "siglip")


def scaled(name: str, place: Any, factor: float = 1.02) -> Callable[[Path], None]:
    """Changes one element, or some, of one tensor of an export."""

    def change(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        held[name][place] *= factor
        save_file(held, folder / "model.safetensors", {"format": "pt"})

    return change


def told(file: str = "config.json", **settings: Any) -> Callable[[Path], None]:
    """Changes settings of a file of an export; a name with two underscores is one of a section."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        for name, value in settings.items():
            section, _, key = name.rpartition("__")
            (content[section] if section else content)[key] = value
        (folder / file).write_text(json.dumps(content))

    return change


LAYER = "language.decoder.layers"
MUTANTS: list[tuple[Callable[[Path], None], list[str]]] = [
    (scaled("model.vision_model.embeddings.position_embedding", (0, 3, 2)), ["vision.embeddings"]),
    (scaled("model.vision_model.encoder.layers.1.ls2", 3), ["vision.layers.1"]),
    (scaled("model.vision_projection.pre_proj_layernorm.bias", 5), ["projector"]),
    (scaled("model.layers.1.self_attn.q_proj.bias", 7), [f"{LAYER}.1"]),
    (scaled("model.layers.0.mlp.down_proj.weight", (3, 4)), [f"{LAYER}.0"]),
    (scaled("model.norm.weight", 9), ["language.decoder.final_layernorm"]),
    (scaled("lm_head.weight", (380, 1)), ["logits"]),
    (scaled("model.embed_tokens.weight", slice(None)), ["language.decoder.embeddings"]),
    (told(rope_parameters__rope_theta=1e4), [f"{LAYER}.0", f"{LAYER}.1"]),
    (told(rms_norm_eps=1e-5), [f"{LAYER}.0", f"{LAYER}.1"]),
    (told(visual__layer_norm_eps=1e-3), ["vision.layers.0", "vision.layers.1"]),
    (told(projector__layer_norm_eps=1e-3), ["projector"]),
    (told("preprocessor_config.json", normalization="clip"), ["vision.embeddings"]),
]


@pytest.mark.parametrize(("change", "layers"), MUTANTS, ids=[layers[0] + f"-{number}" for number, (_, layers) in enumerate(MUTANTS)])
def test_a_fault_is_named_at_its_layer_and_nowhere_else(
    folder: Path, tmp_path: Path, change: Callable[[Path], None], layers: list[str]
) -> None:
    shutil.copytree(folder / "hf", tmp_path / "hf")
    change(tmp_path / "hf")
    found = compared(folder / "native", tmp_path / "hf")
    assert not found.same and found.first_difference == layers[0]
    assert [point.name for point in found.points if point.alone.share > ALONE_TOLERANCE] == layers


def test_a_setting_too_small_to_be_seen_is_a_difference_all_the_same(folder: Path, tmp_path: Path) -> None:
    """An epsilon next to large activations changes less than rounding does."""
    shutil.copytree(folder / "hf", tmp_path / "hf")
    told(visual__layer_norm_eps=1.1e-6)(tmp_path / "hf")
    found = compared(folder / "native", tmp_path / "hf")
    assert found.first_difference == "" and found.problems == ("model.vision.norm_eps: 1e-06 in the first, 1.1e-06 in the second",)


def test_an_exports_own_code_runs_where_it_is_trusted(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "hf", tmp_path / "changed_code")
    code = tmp_path / "changed_code" / "modeling_long_vita.py"
    text = code.read_text()
    assert text.count("nn.GELU()") == 1
    code.write_text(text.replace("nn.GELU()", "nn.GELU(approximate='tanh')"))
    assert compared(folder / "hf", folder / "hf", remote_code=True).computed_by == ("the folder's own modeling_long_vita.py",) * 2
    found = compared(folder / "native", tmp_path / "changed_code")
    assert found.same and found.computed_by[1].startswith("this version's modeling_long_vita.py, not the folder's own")
    assert compared(folder / "native", tmp_path / "changed_code", remote_code=True).first_difference == "projector"


def test_models_of_other_sizes_are_refused(folder: Path, tmp_path: Path) -> None:
    model = replace(TINY, language=replace(TINY.language, num_layers=3))
    native.save_full_weights(tmp_path / "deeper", random_weights(model), tiny_recipe(model))
    with pytest.raises(ValueError, match=r"of different architectures: language.decoder.layers.2.* is absent there, .* and 3 more"):
        compared(folder / "native", tmp_path / "deeper")


def test_settings_that_contradict_the_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    model = replace(TINY, language=replace(TINY.language, num_layers=3))
    native.save_full_weights(tmp_path / "told_wrong", random_weights(), tiny_recipe(model))
    with pytest.raises(ValueError, match="told_wrong: its settings are of another model than its weights: .* missing"):
        compared(folder / "native", tmp_path / "told_wrong")
    shutil.copytree(folder / "hf", tmp_path / "hf")
    told(num_hidden_layers=3)(tmp_path / "hf")
    with pytest.raises(ValueError, match="missing: model.layers.2"):
        compared(folder / "native", tmp_path / "hf")


def test_a_share_hides_no_fault_behind_a_large_element_and_counts_no_rounding_of_it() -> None:
    hidden = torch.ones(2, 64)
    hidden[0, 0] = 1e4
    rounded, faulty = hidden.clone(), hidden.clone()
    rounded[0, 0] += 1e-3
    faulty[1, 5] += 1e-4
    assert measure(hidden, rounded).share < 1e-6 and measure(hidden, faulty).share > 4e-5
    assert measure(hidden, hidden * float("nan")).share == float("inf") == measure(hidden, hidden * float("nan")).largest


def wide_model() -> ModelConfig:
    """Layers of 15 MB in float32, twelve of them, and tables of 17 MB."""
    language = LanguageConfig(
        num_layers=12, hidden_size=512, num_heads=8, num_kv_heads=2, ffn_hidden_size=2048, vocab_size=8192, max_positions=4096
    )
    return replace(TINY, language=language)


MEASURED = """
import sys, threading, time
from pathlib import Path
from mindspeed_vita.checkpoint.source import SourceOptions, open_source
from mindspeed_vita.checks.logits.compare import compare_logits

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

def run(first, second):
    folders = (Path(first), Path(second))
    return compare_logits(folders, tuple(open_source(folder, SourceOptions()) for folder in folders), lambda size: None)

tiny, tiny_hf, wide, wide_hf = sys.argv[1:]
run(tiny, tiny_hf)  # imports, and what libraries keep
before, peak, ended = anonymous(), 0, threading.Event()

def watch():
    global peak
    while not ended.wait(0.0005):
        peak = max(peak, anonymous())

threading.Thread(target=watch, daemon=True).start()
found = run(wide, wide_hf)
ended.set()
print(int(found.same), peak - before)
"""


def test_memory_is_that_of_two_layers_at_most_and_not_of_the_model(folder: Path, tmp_path: Path) -> None:
    """In a process of its own: memory that no file backs, without what imports take."""
    model = wide_model()
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in random_weights(model).items()}
    native.save_full_weights(tmp_path / "wide", weights, tiny_recipe(model, tokenizer=str(folder / "tokenizer")))
    assert main(["convert", "--from", str(tmp_path / "wide"), "--to", "hf", "--output", str(tmp_path / "wide_hf")]) == 0
    paths = [str(folder / "native"), str(folder / "hf"), str(tmp_path / "wide"), str(tmp_path / "wide_hf")]
    ended = subprocess.run([sys.executable, "-c", MEASURED, *paths], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    same, peak = map(int, ended.stdout.split())
    layer = 4 * sum(tensor.numel() for name, tensor in weights.items() if name.startswith("language.decoder.layers.0."))
    whole = 4 * sum(tensor.numel() for tensor in weights.values())
    assert same
    # one layer, or a slice of the head; the rest is modules without data, the probe, and blocks that the checksums are computed of
    assert peak <= 2 * layer + (16 << 20) < whole / 4, (peak, layer, whole)
