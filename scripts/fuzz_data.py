"""Throws damaged rows, mixtures, shards and media at the readers: each is read, or refused by a message that names its place.

    OMP_NUM_THREADS=1 nice -n 15 python scripts/fuzz_data.py [--cases 500000] [--seed 0] [--only rows,mixtures,containers,media]

Of the cases 88 in 100 are rows, the others mixtures, containers (tar shards and Parquet files) and media. Every case follows from the
seed and its number, so a finding can be repeated. What it prints at the end: how many cases were read, and how many were refused. Any
other outcome (another exception, or a message without a place) is a finding: it is printed with its case, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from project_environment import packages_needed

with packages_needed():
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    from mindspeed_vita.data.formats import adapter_for
    from mindspeed_vita.data.index_file import make_batch, row_columns
    from mindspeed_vita.data.measure import Measured, Measurer
    from mindspeed_vita.data.media.decoder import Decoder, close_decoders
    from mindspeed_vita.data.media.limits import DecodeSettings
    from mindspeed_vita.data.media.paths import MediaError
    from mindspeed_vita.data.mixture import load_mixture
    from mindspeed_vita.data.rows import parse_row, row_digest
    from mindspeed_vita.data.sample import Sample
    from mindspeed_vita.data.templates import get_template
    from mindspeed_vita.data.tiny_tokenizer import train_tokenizer
    from mindspeed_vita.data.tokenizer import load_tokenizer, vision_token_ids

SHARES = {"rows": 0.88, "mixtures": 0.06, "containers": 0.02, "media": 0.04}
DECODING = DecodeSettings(seconds=20, memory=1 << 30, max_pixels=4_000_000, max_video_frames=10_000)
_AT_A_TIME = 500
_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 0.5, 1e308, 10**400, "", " ", "<image>", "<video>", "<bbox>", "<ref-object>", "<|im_end|>", "a.png"),
    *("\ud800", "\0", "../../etc/passwd", "data:image/png;base64,AA", [], {}, [[]], [None], ["a.png", None], {"path": "a.png"}),
    *({"bytes": "x"}, {"type": "image"}, {"type": "text", "text": "T"}, {"role": "user"}, [1, 2, 3, 4], "x" * 3000, "assistant", "tool"),
]
_KEYS = ("messages", "images", "image", "videos", "video", "system", "objects", "text", "input_ids", "labels", "loss", "weight", "tools")
_ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "A."}], "images": ["a.png"]},
    {"conversations": [{"from": "human", "value": "<video>\n?"}, {"from": "gpt", "value": "B"}], "video": "c.mp4", "id": 3},
    {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]},
                  {"role": "assistant", "content": [{"type": "text", "text": "C"}], "loss": True}]},
    {"query": "?", "response": "D", "history": [["a", "b"]], "system": "S"},
    {"instruction": "?", "input": "<image>", "output": "E", "images": "a.png"},
    {"text": "A document."},
    {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "attention_mask": [1, 1, 1]},
    {"messages": [{"role": "user", "content": "<image><ref-object> <bbox>"}, {"role": "assistant", "content": "F"}], "images": ["a.png"],
     "objects": {"ref": ["dog"], "bbox": [[1, 2, 9, 9]], "bbox_type": "real"}},
    {"texts": [{"user": "?", "assistant": "G"}], "source": "x"},
    {"messages": [{"role": "user", "content": "<video>"}, {"role": "assistant", "content": "H"}], "videos": [["1.png", "2.png"]]},
    {"context": "?", "answers": ["I"]},
]  # fmt: skip
_MIXTURES = [
    "dataset:\n  a: {ratio: 1.0, data_paths: [a.jsonl]}\n  b:\n    ratio: 0.5\n    num: 10\n    data_paths:\n      - b.jsonl\n",
    "dataset:\n  all:\n    data_paths: ['{a,b}.jsonl']\n    format: json\nother: [1, {x: y}]\n",
    "dataset:\n  off: {ratio: 0, data_paths: [gone.jsonl]}\n  n{0..3}: {data_paths: [\"${UNSET:-b}.jsonl\", a.*]}\n",
]

Outcome = tuple[str, str]
"""(read, refused or finding, what was said)."""


def mutated_bytes(draw: random.Random, content: bytes) -> bytes:
    """Some bytes flipped, cut out, doubled or cut off."""
    data = bytearray(content)
    for _ in range(draw.choice((0, 1, 1, 2, 4, 16))):
        place = draw.randrange(len(data) + 1)
        way = draw.choice((0, 1, 2, 3, 4, 4, 4, 5, 5, 5))
        if way == 0:
            del data[place:]
        elif way == 1:
            del data[place : place + draw.randrange(1, 64)]
        elif way == 2:
            data[place:place] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9)))
        elif way == 3:
            data[place:place] = data[place : place + draw.randrange(1, 64)]
        elif data and place < len(data):
            data[place] = draw.randrange(256) if way == 4 else data[place] ^ (1 << draw.randrange(8))
    return bytes(data)


def mutated_value(draw: random.Random, value: Any) -> Any:
    """The same JSON with one of its parts replaced, left out, doubled or renamed."""
    if draw.random() < 0.25 or not value or not isinstance(value, (dict, list)):
        return draw.choice(_VALUES)
    changed = dict(value) if isinstance(value, dict) else list(value)
    place: Any = draw.choice(list(changed)) if isinstance(changed, dict) else draw.randrange(len(changed))
    way = draw.randrange(8)
    if way == 0:
        del changed[place]
    elif way == 1 and isinstance(changed, dict):
        changed[draw.choice(_KEYS)] = changed.pop(place)
    elif way == 2 and isinstance(changed, dict):
        changed[draw.choice(_KEYS)] = draw.choice(_VALUES)
    elif way == 3 and isinstance(changed, list):
        changed.append(changed[place])
    else:
        changed[place] = mutated_value(draw, changed[place])
    return changed


class Rows:
    """Rows of JSON: parsed, tokenised, measured, and put into a batch of the index."""

    def __init__(self, folder: Path) -> None:
        train_tokenizer(["What is it? A cat and 12 dogs.\n"] * 8, 300, folder / "tokenizer")
        self._tokenizer, self._template = load_tokenizer(folder / "tokenizer"), get_template("qwen2")
        ids = vision_token_ids(self._tokenizer)
        self._measurer = Measurer(tokenizer=self._tokenizer, template=self._template, ids=ids, decoding=DECODING)
        self._tags = (ids.image_tag, ids.video_tag)
        self._root = folder / "media"
        self._root.mkdir()
        for name in ("a.png", "1.png", "2.png"):
            Image.new("RGB", (40, 30)).save(self._root / name)
        _clip(self._root / "c.mp4")

    def text(self, draw: random.Random) -> bytes:
        """One row."""
        value: Any = draw.choice(_ROWS)
        for _ in range(draw.choice((0, 1, 1, 2, 3))):
            value = mutated_value(draw, value)
        text = json.dumps(value).encode()
        return mutated_bytes(draw, text) if draw.random() < 0.3 else text

    def outcomes(self, cases: list[tuple[int, random.Random]]) -> Iterator[Outcome]:
        """What became of each row."""
        texts = [self.text(draw) for _, draw in cases]
        found: dict[int, Outcome] = {}
        samples: dict[int, Sample] = {}
        for place, text in enumerate(texts):
            said = guarded(lambda text=text, place=place: parse_row(text, "rows.jsonl", place, False), f"rows.jsonl:{place}")  # type: ignore[misc]
            found[place], sample = said
            if isinstance(sample, Sample):
                samples[place] = sample
        measured = self._measure(list(samples.values()))
        table = []
        for (place, sample), outcome in zip(samples.items(), measured):
            if isinstance(outcome, str):
                found[place] = ("finding", outcome)
            elif isinstance(outcome, Measured):
                found[place] = self._agrees(sample, outcome)
                table.append(row_columns((0, 1, place), row_digest(texts[place]), outcome))
            else:
                reason = outcome.reason.encode("utf-8", "backslashreplace").decode()
                found[place] = ("refused" if reason else "finding", reason)
                table.append(row_columns((0, 1, place), row_digest(texts[place]), (reason, bool(outcome.path))))
        assert len(make_batch(table)) == len(table) if table else True
        yield from (found[place] for place in range(len(texts)))

    def _measure(self, samples: list[Sample]) -> list[Measured | MediaError | str]:
        """What measuring all at once says; where that raises, each alone, with the exception as a text."""
        try:
            return list(self._measurer.measure_all(samples, str(self._root)))
        except Exception as error:  # noqa: BLE001 - whatever comes is what this program looks for
            if len(samples) == 1:
                return [f"{type(error).__name__}: {error}"]
            return [outcome for sample in samples for outcome in self._measure([sample])]

    def _agrees(self, sample: Sample, measured: Measured) -> Outcome:
        """What was measured is what training tokenises."""
        if sample.boxes:
            sample = sample.located(measured.sizes)
        ids, _ = self._template.encode(sample.messages, self._tokenizer)
        text = sum(token not in self._tags for token in ids)
        if text != sum(measured.turn_tokens):
            return "finding", f"measured {sum(measured.turn_tokens)} tokens, {text} are learnt from"
        return "read", ""


class Mixtures:
    """Mixtures, in a folder with two files that they may name."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "mixture.yaml"
        for name in ("a.jsonl", "b.jsonl"):
            (folder / name).write_text("{}\n")

    def outcomes(self, cases: list[tuple[int, random.Random]]) -> Iterator[Outcome]:
        """What became of each mixture."""
        for _, draw in cases:
            self._path.write_bytes(mutated_bytes(draw, draw.choice(_MIXTURES).encode()))
            yield guarded(lambda: load_mixture(self._path), "mixture ")[0]


class Containers:
    """Tar shards and Parquet files: the rows that their readers find."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        picture = io.BytesIO()
        Image.new("RGB", (8, 6), (200, 30, 30)).save(picture, "PNG")
        shard = io.BytesIO()
        with tarfile.open(fileobj=shard, mode="w") as tar:
            for number in range(3):
                row = {"messages": _ROWS[0]["messages"]}
                for suffix, content in (("json", json.dumps(row).encode()), ("png", picture.getvalue())):
                    entry = tarfile.TarInfo(f"{number}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        table = pa.table({"messages": [_ROWS[0]["messages"]] * 5, "images": [[{"bytes": picture.getvalue(), "path": None}]] * 5})
        rows = io.BytesIO()
        pq.write_table(table, rows, row_group_size=2)
        self._seeds = {"s.tar": shard.getvalue(), "s.parquet": rows.getvalue()}

    def outcomes(self, cases: list[tuple[int, random.Random]]) -> Iterator[Outcome]:
        """What became of each file."""
        for _, draw in cases:
            name = draw.choice(list(self._seeds))
            path = self._folder / name
            path.write_bytes(mutated_bytes(draw, self._seeds[name]))
            adapter = adapter_for(str(path))
            assert adapter is not None
            yield guarded(lambda path=path, adapter=adapter: list(adapter(str(path))), str(path))[0]  # type: ignore[misc]


class Media:
    """Pictures and clips: header and pixels, in the decoder process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._decoder = Decoder(DECODING)
        y, x = np.mgrid[0:24, 0:32]
        image = Image.fromarray(np.stack([8 * x, 10 * y, x * y], axis=-1).astype(np.uint8))
        self._seeds: dict[str, bytes] = {}
        for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff", "ppm"):
            image.save(folder / f"seed.{suffix}")
            self._seeds[suffix] = (folder / f"seed.{suffix}").read_bytes()
        for suffix in ("mp4", "mkv", "avi", "ts"):
            self._seeds[suffix] = _clip(folder / f"seed.{suffix}")

    def outcomes(self, cases: list[tuple[int, random.Random]]) -> Iterator[Outcome]:
        """What became of each file."""
        for _, draw in cases:
            suffix = draw.choice(list(self._seeds))
            name = f"case.{suffix}"
            (self._folder / name).write_bytes(mutated_bytes(draw, self._seeds[suffix]))
            look = self._film if suffix in ("mp4", "mkv", "avi", "ts") else self._picture
            yield guarded(lambda look=look, name=name: look(name), "")[0]  # type: ignore[misc]

    def _picture(self, name: str) -> None:
        self._decoder.probe_picture(name, str(self._folder))
        self._decoder.picture(name, str(self._folder), (1, 1), range(1), np.empty((1, 3, 28, 28), np.uint8))

    def _film(self, name: str) -> None:
        header = self._decoder.probe_video(name, str(self._folder))
        numbers = header.sample(max_frames=4, max_fps=2, sampler="uniform")
        self._decoder.video(name, str(self._folder), header, numbers, np.empty((len(numbers), 3, 28, 28), np.uint8))

    def close(self) -> None:
        """Ends the decoder."""
        self._decoder.close()


def _clip(path: Path) -> bytes:
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for number in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), 30 * number, dtype=np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path.read_bytes()


def guarded(work: Callable[[], Any], place: str) -> tuple[Outcome, Any]:
    """The outcome of some work and what it returned. A refusal must begin with the place."""
    try:
        return ("read", ""), work()
    except ValueError as error:
        return (("refused" if str(error).startswith(place) else "finding"), f"{type(error).__name__}: {error}"), None
    except MediaError as error:
        return ("refused" if error.reason else "finding", error.reason), None
    except Exception as error:  # noqa: BLE001 - whatever else comes is what this program looks for
        return ("finding", f"{type(error).__name__}: {error}"), None


PARTS: dict[str, Callable[[Path], Any]] = {"rows": Rows, "mixtures": Mixtures, "containers": Containers, "media": Media}


def fuzz(part: str, count: int, folder: Path, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Runs cases of one part.

    Args:
        part: one of PARTS.
        count: cases.
        folder: empty, for the files.
        seed: of all cases.

    Returns:
        How many cases had each outcome (of media also: what ended the decoder), and the findings.
    """
    worker = PARTS[part](folder)
    counts: Counter[str] = Counter()
    findings = []
    for first in range(0, count, _AT_A_TIME):
        cases = [(number, random.Random(f"{seed} {part} {number}")) for number in range(first, min(count, first + _AT_A_TIME))]
        for (number, _), (outcome, said) in zip(cases, worker.outcomes(cases), strict=True):
            counts[outcome] += 1
            if "the decoder" in said or "took longer" in said:
                counts[said.split(" while ")[0]] += 1
            if outcome == "finding":
                findings.append(f"{part} {number} of seed {seed}: {said[:300]}")
    if isinstance(worker, Media):
        worker.close()
    return counts, findings


def main() -> int:
    """Runs the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(SHARES))
    arguments = parser.parse_args()
    failed = False
    for part in arguments.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            counts, findings = fuzz(part, round(arguments.cases * SHARES[part]), Path(folder), arguments.seed)
        failed |= bool(findings)
        print(f"{part}: " + ", ".join(f"{count:,} {name}" for name, count in counts.most_common()), flush=True)
        for finding in findings[:20]:
            print(f"  {finding}", flush=True)
    close_decoders()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
