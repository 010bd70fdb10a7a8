"""Throws damaged files and request bodies at what reads them: each is read, or refused by one message that names the file.

    OMP_NUM_THREADS=1 nice -n 15 python scripts/fuzz_files.py [--cases 50000] [--seed 0] [--only recipes,pipelines,...]

Parts: recipes and pipelines (YAML), records (a step's and an export's JSON files), native, exports, megatron and adapters (checkpoints,
their weights too), tags (what tokens of pictures and tiles can be), and bodies (requests to `vita serve`). scripts/fuzz_data.py does the
same to rows, mixtures, shards and media. A case follows from the seed and its number. Any outcome but these two is printed, and the exit
status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from project_environment import packages_needed

with packages_needed():
    import torch
    from fuzz_data import Outcome, mutated_bytes, mutated_value

    from mindspeed_vita.checkpoint import gates, lineage
    from mindspeed_vita.checkpoint.adapter import peft_files
    from mindspeed_vita.checkpoint.adapter.layers import initial_matrices
    from mindspeed_vita.checkpoint.adapter.source import open_adapter
    from mindspeed_vita.checkpoint.conversion import IN_MEMORY
    from mindspeed_vita.checkpoint.hf.export import export_hf
    from mindspeed_vita.checkpoint.hf.weights import native_tensors
    from mindspeed_vita.checkpoint.megatron.write import write_megatron
    from mindspeed_vita.checkpoint.native.checkpoint import save_full_weights
    from mindspeed_vita.checkpoint.native.step_folder import TrainState, load_state
    from mindspeed_vita.checkpoint.source import SourceOptions, open_source
    from mindspeed_vita.config import DataConfig, LanguageConfig, ModelConfig, ProjectorConfig, Recipe, VisionConfig, load_recipe, validate
    from mindspeed_vita.data.templates import get_template
    from mindspeed_vita.data.tiny_tokenizer import train_tokenizer
    from mindspeed_vita.data.tokenizer import load_tokenizer, vision_token_ids
    from mindspeed_vita.files.tensors import held
    from mindspeed_vita.hf.tiling import choose_grid
    from mindspeed_vita.hf.token_layout import expand, image_layout, image_token_count, video_layout
    from mindspeed_vita.pipeline.pipeline_file import load_pipeline

for _name in ("DATA_ROOT", "TOKENIZER", "BASE_WEIGHTS", "INIT_FROM", "OUTPUT_ROOT"):
    os.environ.setdefault(_name, "elsewhere")  # the examples' recipes name them
ROOT = Path(__file__).resolve().parents[1]
_MODEL = ModelConfig(
    vision=VisionConfig(tile_size=28, patch_size=7, hidden_size=16, num_layers=1, num_heads=2, ffn_hidden_size=16),
    projector=ProjectorConfig(hidden_size=16),
    language=LanguageConfig(num_layers=1, hidden_size=16, num_heads=2, num_kv_heads=1, ffn_hidden_size=16, vocab_size=320),
)
_TEXT = (".json", ".yaml")


class Files:
    """Cases that damage one file of a folder at a time.

    Args:
        folder: with the whole files.
        names: of those that are damaged.
        read: what reads the folder.
    """

    def __init__(self, folder: Path, names: Sequence[str], read: Callable[[Path], Any]) -> None:
        self._folder, self._read = folder, read
        self._whole = {name: (folder / name).read_bytes() for name in names}

    def outcome(self, draw: random.Random) -> Outcome:
        """One case."""
        name = draw.choice(list(self._whole))
        content = self._whole[name]
        if name.endswith(".json") and draw.random() < 0.6:
            content = json.dumps(mutated_value(draw, json.loads(content))).encode()
        elif name.endswith(".safetensors") and draw.random() < 0.7:  # the header, where most bytes mean something
            size = 8 + int.from_bytes(content[:8], "little")
            content = mutated_bytes(draw, content[:size]) + content[size:]
        else:
            content = mutated_bytes(draw, content)
        path = self._folder / name
        path.write_bytes(content)
        try:
            return guarded(lambda: self._read(self._folder), self._folder)
        finally:
            path.write_bytes(self._whole[name])


class Calls:
    """Cases that need no file."""

    def __init__(self, make: Callable[[random.Random], Callable[[], Any]], refusal: type[Exception]) -> None:
        self._make, self._refusal = make, refusal

    def outcome(self, draw: random.Random) -> Outcome:
        """One case."""
        work = self._make(draw)
        try:
            work()
        except self._refusal as error:
            return ("refused" if str(error) else "finding"), f"{type(error).__name__}: {error}"
        except Exception as error:  # noqa: BLE001 - whatever else comes is what this program looks for
            return "finding", f"{type(error).__name__}: {error}"
        return "read", ""


def guarded(work: Callable[[], Any], folder: Path) -> Outcome:
    """The outcome of some work. A refusal must name the folder or a file in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work()
        return "read", ""
    except ValueError as error:
        return ("refused" if folder.name in str(error) else "finding"), f"{type(error).__name__}: {error}"
    except OSError as error:
        return ("refused" if error.filename or folder.name in str(error) else "finding"), f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001 - as above
        return "finding", f"{type(error).__name__}: {error}"


def _recipes(folder: Path) -> Files:
    names = []
    for path in sorted(ROOT.glob("examples/*/stage*.yaml")):
        names.append(f"{path.parent.name}_{path.name}")
        shutil.copyfile(path, folder / names[-1])
    files = Files(folder, names, lambda _: None)

    def outcome(draw: random.Random) -> Outcome:
        name = draw.choice(names)
        (folder / "case.yaml").write_bytes(mutated_bytes(draw, (folder / name).read_bytes()))
        words = draw.choice([[], ["train.lr=1e-3"], [f"train.steps={draw.choice(['0', '-1', 'x', '1e3', '[]', 'null'])}"]])
        return guarded(lambda: _valid(load_recipe(folder / "case.yaml", words), folder / "case.yaml"), folder)

    files.outcome = outcome  # type: ignore[method-assign]
    return files


def _valid(recipe: Recipe, where: Path) -> None:
    try:
        validate(recipe, 8)
    except ValueError as error:  # it names keys, not the file
        raise ValueError(f"{where}: {error}") from error


def _pipelines(folder: Path) -> Files:
    for name in ("tiny", "long_vita_7b"):
        for path in ROOT.glob(f"examples/{name}/*"):
            if path.suffix in (".yaml", ".sh"):
                shutil.copyfile(path, folder / path.name)
        shutil.copyfile(ROOT / "examples" / name / "pipeline.yaml", folder / f"{name}.yaml")
    stage = "name: a\nstages:\n  - name: b\n    recipe: stage0.yaml\n    start: recipe\n    settings: [train.steps=3]\n"
    more = "    gates:\n      - loss --at-most 2\n      - needle --lengths 4 --pass 1\n    after: ['lineage {run}']\n"
    (folder / "gates.yaml").write_text(stage + more)
    names = ("tiny.yaml", "gates.yaml")
    return Files(folder, names, lambda path: [load_pipeline(path / name) for name in names])


def _made(folder: Path) -> tuple[dict[str, torch.Tensor], Recipe, Any]:
    train_tokenizer(["What is it? A cat and 12 dogs.\n"] * 8, 300, folder.parent / "tokenizer")
    data = DataConfig(tokenizer=str(folder.parent / "tokenizer"), max_tiles=2)
    recipe = Recipe(name="fuzz", model=_MODEL, data=data)
    weights = {name: torch.full(tuple(tensor.shape), 0.01) for name, tensor in native_tensors(_MODEL).items()}
    return weights, recipe, load_tokenizer(data.tokenizer, get_template(data.template))


def _record() -> lineage.Lineage:
    return lineage.converted("native", {"dtype": "fp32"}, [lineage.begun(Recipe(name="a"), data="d", start=None)])


def _open(folder: Path) -> None:
    opened = open_source(folder, SourceOptions())
    for name in opened.weights:
        opened.weights[name].float().sum()
    opened.wait()


def _native(folder: Path) -> Files:
    weights, recipe, _ = _made(folder)
    save_full_weights(folder, weights, recipe, conversion=replace(IN_MEMORY, lineage=_record()))
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return Files(folder, names, _open)


def _records(folder: Path) -> Files:
    weights, recipe, _ = _made(folder)
    state = TrainState(step=3, packs=6, fingerprint="f", failed_samples=(1,), layout={"tp": 1, "pp": 1, "cp": 1, "dp": 1})
    step = save_full_weights(folder, weights, recipe, step=3, conversion=replace(IN_MEMORY, lineage=_record()))
    (step / "state.json").write_text(json.dumps(vars(state)))
    gate = gates.write_gate(step, gates.Gate(name="needle", measured=0.9, bound=0.8, better="higher"))
    names = [str(path.relative_to(folder)) for path in (gate, step / "state.json", step / lineage.LINEAGE)]

    def read(path: Path) -> None:
        load_state(step)
        "".join(lineage.tree(lineage.of_checkpoint(path)))
        gates.held_gates(path)

    return Files(folder, names, read)


def _exports(folder: Path) -> Files:
    weights, recipe, tokenizer = _made(folder)
    export_hf(weights, recipe, folder, tokenizer=tokenizer, conversion=replace(IN_MEMORY, lineage=_record()))
    names = [path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors") and "token" not in path.name]
    names = [name for name in names if name not in ("vocab.json", "verification.json", "generation_config.json")]

    def read(path: Path) -> None:
        _open(path)
        lineage.of_checkpoint(path)

    return Files(folder, names, read)


def _megatron(folder: Path) -> Files:
    weights, recipe, _ = _made(folder)
    folder.rmdir()
    write_megatron(held(weights), recipe, folder, tp=1, pp=1, fused_norms=False, conversion=replace(IN_MEMORY, lineage=_record()))
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]

    def read(path: Path) -> None:
        _open(path)
        lineage.of_checkpoint(path)

    return Files(folder, names, read)


def _adapters(folder: Path) -> Files:
    lora = replace(Recipe(name="fuzz").lora, rank=2, parts=("language", "projector"))
    for name in ("ours", "peft"):
        (folder / name).mkdir()
        peft_files.write_peft(folder / name, held(initial_matrices(_MODEL, lora, 1)), Recipe(name="fuzz", model=_MODEL, lora=lora))
    (folder / "peft" / peft_files.OURS).unlink()  # peft does not write it
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    return Files(folder, names, lambda path: [dict(open_adapter(path / name).read(_MODEL)) for name in ("ours", "peft")])


def _tags(folder: Path) -> Calls:
    _, _, tokenizer = _made(folder)
    ids = vision_token_ids(tokenizer)
    tags = (ids.image_tag, ids.video_tag)

    def make(draw: random.Random) -> Callable[[], Any]:
        text = [draw.choice((*tags, 1, 2, 3)) for _ in range(draw.randrange(0, 12))]
        wanted = [token for token in text if token in tags]
        if draw.random() < 0.3 and wanted:
            wanted.pop() if draw.random() < 0.5 else wanted.append(draw.choice(tags))
        size = draw.randrange(1, 20_000), draw.randrange(1, 20_000)

        def work() -> None:
            media = []
            for token in wanted:
                if token == ids.video_tag:
                    media.append(video_layout(ids, draw.randrange(1, 9), 4))
                    continue
                rows, columns = choose_grid(*size, min_tiles=1, max_tiles=draw.randrange(1, 13), tile_size=448)
                tiles = rows * columns + (rows * columns > 1)
                media.append(image_layout(ids, tiles, (rows, columns), 4))
                assert len(media[-1].token_ids) == image_token_count((rows, columns), 4), "two ways to count the tokens of a picture"
            expanded = expand(text, ids, media)
            assert sum(token in tags for token in expanded.token_ids) == 0, "a tag is left"

        return work

    return Calls(make, ValueError)


def _bodies(folder: Path) -> Calls:
    from mindspeed_vita.serving.app import _validated
    from mindspeed_vita.serving.clients import _parse
    from mindspeed_vita.serving.conversation import RequestLimits, conversation
    from mindspeed_vita.serving.errors import ApiError
    from mindspeed_vita.serving.media_rules import MediaRules
    from mindspeed_vita.serving.schema import ChatRequest, CompletionRequest

    picture = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
    parts = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": picture}}]
    film = {"type": "video_url", "video_url": {"url": "../secret.mp4"}}
    chats: list[Any] = [
        {"model": "m", "messages": [{"role": "user", "content": parts}], "max_tokens": 4, "stream": True, "stop": ["a"]},
        {"model": "m", "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": [film]}], "seed": 1, "n": 2},
        {"model": "m", "messages": [{"role": "user", "content": "<image>"}], "temperature": 0.5, "logprobs": True, "top_logprobs": 3},
    ]
    completion = {"model": "m", "prompt": ["a", "b"], "echo": False, "max_tokens": 3}
    rules = MediaRules(root=folder)

    def make(draw: random.Random) -> Callable[[], Any]:
        value = mutated_value(draw, draw.choice([*chats, completion]))
        content = json.dumps(value).encode()
        content = mutated_bytes(draw, content) if draw.random() < 0.3 else content

        def work() -> None:
            body = _parse(content, 1000)
            try:
                _validated(body, CompletionRequest)
            except ApiError:
                request = _validated(body, ChatRequest)
                with tempfile.TemporaryDirectory() as place:
                    conversation(request.messages, rules, RequestLimits(), Path(place))

        return work

    return Calls(make, ApiError)


PARTS: dict[str, Callable[[Path], Any]] = {
    "recipes": _recipes,
    "pipelines": _pipelines,
    "records": _records,
    "native": _native,
    "exports": _exports,
    "megatron": _megatron,
    "adapters": _adapters,
    "tags": _tags,
    "bodies": _bodies,
}


def fuzz(part: str, count: int, folder: Path, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Runs cases of one part.

    Args:
        part: one of PARTS.
        count: cases.
        folder: empty, for the files.
        seed: of all cases.

    Returns:
        How many cases had each outcome, and the findings.
    """
    place = folder / f"fuzzed_{part}"
    place.mkdir()
    worker = PARTS[part](place)
    counts: Counter[str] = Counter()
    findings = []
    for number in range(count):
        outcome, said = worker.outcome(random.Random(f"{seed} {part} {number}"))
        counts[outcome] += 1
        if outcome == "finding":
            findings.append(f"{part} {number} of seed {seed}: {said[:300]}")
    return counts, findings


def main() -> int:
    """Runs the parts asked for, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=50_000, help="of all parts together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(PARTS))
    arguments = parser.parse_args()
    parts, found = arguments.only.split(","), []
    print("| part | inputs | read | refused | crashes |\n|---|---|---|---|---|")
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            counts, findings = fuzz(part, arguments.cases // len(parts), Path(folder), arguments.seed)
        found += findings
        print(f"| {part} | {counts.total():,} | {counts['read']:,} | {counts['refused']:,} | {counts['finding']:,} |", flush=True)
    for finding in found[:40]:
        print(finding)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
