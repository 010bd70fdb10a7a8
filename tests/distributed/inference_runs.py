"""What the workers of a LayoutPool carry out for the tests of cached inference."""

from __future__ import annotations

from typing import Any

Question = tuple[str, list[str], list[str]]
"""Prompt, pictures and videos of one request."""


def answers(
    layout: Any, *, folder: str, questions: list[Question], count: int, block_size: int, chunk: int = 1 << 20, travels: str = "auto"
) -> dict[str, Any]:
    """Greedy answers to questions that run as one batch: tokens and all logits on this rank, and the blocks that each rank holds."""
    from mindspeed_vita.inference.request import ask
    from mindspeed_vita.inference.session import SessionSettings, load_session
    from tests.inference_steps import Drive

    settings = SessionSettings(cache_memory=1 << 24, block_size=block_size, travels=travels)
    session = load_session(folder, settings=settings, tp=layout.tp_size, cp=layout.cp_size)
    for number, question in enumerate(questions):
        session.runner.add(number, session.prompts.encode(ask(*question)), longest=4096)
    drive = Drive(session)
    tokens, logits = drive.greedy(range(len(questions)), count, chunk=chunk)
    return {"tokens": tokens, "logits": logits, "used": drive.used}
