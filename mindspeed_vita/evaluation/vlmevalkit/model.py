"""The model class that VLMEvalKit calls: `generate(message, dataset)` of its BaseModel, which calls our generate_inner.

One process. For tensor and context parallel, serve the model and take VLMEvalKit's GPT class.
"""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from typing import Any, Optional

from vlmeval.vlm.base import BaseModel

from mindspeed_vita.engine.session import shutdown
from mindspeed_vita.evaluation.shared_session import SharedSession
from mindspeed_vita.evaluation.vlmevalkit.prompt import request_of_message
from mindspeed_vita.files.sizes import parse_size
from mindspeed_vita.inference.sampling import SamplingParams
from mindspeed_vita.inference.session import SessionSettings, load_session


class LongVitaNative(BaseModel):  # type: ignore[misc]
    """Long-VITA with weights of any format that `vita generate` takes.

    Args:
        model_path: checkpoint.
        max_num_frame: most frames of a video; None takes the checkpoint's setting.
        max_new_tokens: most tokens of an answer.
        cache_memory: memory of the key-value cache, such as 20GB; None takes a share of what is free.
        options: of load_session.

    Raises:
        ValueError: as load_session.
    """

    INTERLEAVE = True
    VIDEO_LLM = True

    def __init__(
        self,
        model_path: str,
        max_num_frame: Optional[int] = None,
        max_new_tokens: int = 1024,
        cache_memory: Optional[str] = None,
        **options: Any,
    ) -> None:
        super().__init__()
        memory = None if cache_memory is None else parse_size(cache_memory, "cache_memory", unit_needed=True)
        session = load_session(model_path, settings=SessionSettings(cache_memory=memory), max_frames=max_num_frame, **options)
        atexit.register(shutdown)
        self.shared, self.params = SharedSession(session), SamplingParams(max_tokens=max_new_tokens)

    def generate_inner(self, message: Sequence[dict[str, str]], dataset: Optional[str] = None) -> str:
        """The answer to one row. Greedy."""
        request = request_of_message(message, dataset)
        return self.shared.answers([(f"a row of {dataset}", request, self.params)])[0].text
