"""Long-VITA inside lmms-eval: a model that its registry finds by our entry point. No engine is started here.

`manifest` is all that the registry calls. lmms_eval is imported only there, by model.py and by __main__.py.
"""

from __future__ import annotations

from typing import Any

NAME = "long_vita"
"""For lmms-eval's --model."""
TESTED = "0.7.3"
"""The release of lmms-eval that the tests were recorded with."""


def manifest() -> Any:
    """What lmms-eval's registry is to know: the model's name and its two classes, for tasks with messages and for those without."""
    from lmms_eval.models.registry_v2 import ModelManifest

    where = f"{__name__}.model"
    return ModelManifest(model_id=NAME, simple_class_path=f"{where}.LongVita", chat_class_path=f"{where}.LongVitaChat")
