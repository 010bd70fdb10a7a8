"""Real MindSpeed-LLM, MindSpeed and Megatron-LM from the folder that VITA_UPSTREAM names, over an emulated torch_npu."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Iterator

import pytest

from mindspeed_vita.config import Recipe
from tests.integration.mindspeed_run import NEEDS, PROJECTS, MindSpeed
from tests.tiny_data import TinyData, tiny  # noqa: F401 - a fixture


@pytest.fixture(scope="session")
def mindspeed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MindSpeed]:
    """Starts training runs of MindSpeed-LLM; skips, with the reason, where it is not there.

    VITA_RESULTS names a file that the rows of the table of results are added to.
    """
    folder = os.environ.get("VITA_UPSTREAM")
    if not folder:
        pytest.skip(f"VITA_UPSTREAM is not set: it names a folder with {', '.join(PROJECTS)}")
    missing = [name for name in PROJECTS if not (Path(folder) / name).is_dir()]
    if missing:
        pytest.skip(f"VITA_UPSTREAM={folder} lacks {', '.join(missing)}")
    found = MindSpeed(Path(folder), tmp_path_factory.mktemp("mindspeed"))
    code = f"import importlib.util as u; print(*[name for name in {NEEDS!r} if u.find_spec(name) is None])"
    lacking = subprocess.run([found.python, "-c", code], capture_output=True, text=True, timeout=120, env=found.environment())
    if lacking.returncode or lacking.stdout.strip():
        reason = lacking.stdout.strip() or lacking.stderr[-300:]
        pytest.skip(f"{found.python} lacks what MindSpeed-LLM imports: {reason}; VITA_UPSTREAM_PYTHON may name another interpreter")
    yield found
    if os.environ.get("VITA_RESULTS"):
        with open(os.environ["VITA_RESULTS"], "a", encoding="utf-8") as file:
            file.writelines(f"{row}\n" for row in found.rows)


@pytest.fixture(scope="session")
def weights(tiny: TinyData, mindspeed: MindSpeed) -> Path:  # noqa: F811 - the fixture above
    """Native weights that every run starts from."""
    folder = mindspeed.folder / "weights"
    return save_fresh_weights(tiny.recipe(folder), folder)


def save_fresh_weights(recipe: Recipe, folder: Path) -> Path:
    """A fresh model's weights, with biases and norms moved off their neutral values."""
    import torch

    from mindspeed_vita.checkpoint.native import checkpoint as native
    from mindspeed_vita.engine.session import distributed
    from mindspeed_vita.parallel.build import build_model
    from mindspeed_vita.platform import get_platform

    with distributed(recipe, get_platform()) as layout:
        model = build_model(recipe, layout)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        native.save_weights(folder, model, recipe)
    return folder
