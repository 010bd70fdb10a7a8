"""What the workers of a LayoutPool carry out for the tests of evaluators."""

from __future__ import annotations

from typing import Any


def late(layout: Any, *, folder: str, timeout: float, seconds: float) -> list[str]:
    """Answers of ranks that do something else before their first requests and between two; the second rank for longer than the timeout."""
    import time

    from mindspeed_vita.evaluation.shared_session import SharedSession
    from mindspeed_vita.inference.request import ask
    from mindspeed_vita.inference.sampling import SamplingParams
    from mindspeed_vita.inference.session import SessionSettings, load_session

    settings = SessionSettings(cache_memory=1 << 22, block_size=16, rank_timeout=timeout)
    session = SharedSession(load_session(folder, tp=layout.tp_size, cp=layout.cp_size, settings=settings))
    said = []
    for _ in range(2):
        time.sleep(seconds if session.session.ranks.rank else timeout / 2)
        said += [answer.text for answer in session.answers([("one", ask("Hi?"), SamplingParams(max_tokens=3))])]
    return said


def shared(layout: Any, *, folder: str, prompts: list[list[str]], continuations: list[str]) -> list[Any]:
    """This rank's own prompts and continuations, answered by the model that all ranks share."""
    from mindspeed_vita.evaluation.shared_session import SharedSession
    from mindspeed_vita.inference.request import ask
    from mindspeed_vita.inference.sampling import SamplingParams
    from mindspeed_vita.inference.session import SessionSettings, load_session

    settings = SessionSettings(cache_memory=1 << 22, block_size=16)
    session = SharedSession(load_session(folder, tp=layout.tp_size, cp=layout.cp_size, settings=settings))
    mine = prompts[session.session.ranks.rank]
    said = session.answers([(prompt, ask(prompt), SamplingParams(max_tokens=5)) for prompt in mine])
    problem = ""
    try:
        session.answers([(prompt, ask(prompt), SamplingParams(max_tokens=4096)) for prompt in mine[:1]])
    except ValueError as error:
        problem = str(error)
    tokens = [session.tokens_of(continuation) for continuation in continuations]
    forced = [SamplingParams(max_tokens=len(ids), forced=ids, logprobs=1) for ids in tokens]
    scored = session.answers([(mine[0], ask(mine[0]), params) for params in forced] if mine else [])
    losses = [sum(token.logprob or 0.0 for token in answer.tokens) for answer in scored]
    return [[answer.text for answer in said], losses, problem]


def chosen(layout: Any, *, folders: list[str]) -> str:
    """The step that a rank uses where each rank sees another newest one."""
    from pathlib import Path

    import torch.distributed as dist

    from mindspeed_vita.engine.chosen_step import choose_step

    try:
        return str(choose_step(Path(folders[dist.get_rank()])))
    except ValueError as error:
        return str(error)
