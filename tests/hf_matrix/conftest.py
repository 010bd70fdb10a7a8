"""The exports that every transformers line loads, one model and processor, and warnings as errors.

The tests of this folder run in the usual run of pytest under the installed transformers, and once more by test_lines.py and
scripts/hf_matrix.sh under other ones, with the folder that the installed one made in VITA_HF_MATRIX_WORLD.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

_ALLOWED = (
    # 4.57 says this of every image processor without a fast twin, and asks for no change of ours
    "Using a slow image processor as `use_fast` is unset",
    # assisted decoding calls the draft model so itself
    "Passing `generation_config` together with generation-related arguments",
    "A custom logits processor of type <class 'transformers.generation.logits_process.SuppressTokens",
    # some releases report the pipeline's device as a warning, and set a length of their own next to the caller's for it and for a draft
    "Device set to use cpu",
    "Both `max_new_tokens` (=",
    "Both `min_new_tokens` (=",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Python warnings are errors here."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("error"))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of world.py."""
    if os.environ.get("VITA_HF_MATRIX_WORLD"):
        return Path(os.environ["VITA_HF_MATRIX_WORLD"])
    from tests.hf_matrix.world import make

    folder = tmp_path_factory.mktemp("world") / "made"
    make(folder)
    return folder


@pytest.fixture(autouse=True)
def no_logged_warnings() -> Iterator[None]:
    """transformers logs what it would have changed: that is an error here, as Python's warnings are."""
    found: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Collect(logging.WARNING)
    loggers = [logging.getLogger(), logging.getLogger("transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    yield
    for logger in loggers:
        logger.removeHandler(handler)
    unexpected = [text for text in found if not text.startswith(_ALLOWED)]
    assert not unexpected, f"logged under transformers {transformers.__version__}: {unexpected}"


@pytest.fixture(scope="session")
def exported(world: Path) -> str:
    """The usual export."""
    return str(world / "usual")


@pytest.fixture(scope="session")
def model(exported: str) -> Any:
    """The exported model. Its answers do not end: the token for that is one that it never says."""
    loaded = transformers.AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True).eval()
    loaded.generation_config.eos_token_id = loaded.config.video_token_id
    return loaded


@pytest.fixture(scope="session")
def processor(exported: str) -> Any:
    """The exported processor."""
    return transformers.AutoProcessor.from_pretrained(exported, trust_remote_code=True)


@pytest.fixture(scope="session")
def cache_name() -> str:
    """What this transformers calls the key-value cache."""
    return "cache" if "cache" in inspect.signature(transformers.Qwen2Model.forward).parameters else "past_key_values"


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A video file: 30 frames at 10 per second."""
    import av
    import numpy as np

    path, draw = tmp_path_factory.mktemp("clip") / "clip.mp4", np.random.default_rng(1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw.integers(0, 256, (32, 48, 3), dtype=np.uint8), format="rgb24")))
        container.mux(stream.encode())
    return str(path)


@pytest.fixture(scope="session")
def inputs(world: Path, processor: Any) -> dict[str, torch.Tensor]:
    """A prompt with a picture of three tiles and a video of three frames; its text repeats itself."""
    text = "<|im_start|>user\n<image>\nOne cat, one cat, one <video>\ncat and one cat<|im_end|>\n<|im_start|>assistant\n"
    return dict(processor(text=text, images=[str(world / "wide.png")], videos=[str(world / "frames")], return_tensors="pt"))
