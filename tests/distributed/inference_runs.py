"""What the workers of a LayoutPool carry out for the tests of cached inference."""

from __future__ import annotations

from typing import Any

Question = tuple[str, list[str], list[str]]
"""Prompt, pictures and videos of one request."""
BLOCK = 16
"""Tokens of a block: small, so that prompts of a hundred tokens fill several blocks on every rank."""
MEMORY = 1 << 24
SHORT = (1, 6, 2)
"""Questions of few blocks."""


def exactness(layout: Any, *, folder: str, questions: list[Question], count: int) -> dict[str, Any]:
    """Greedy answers of `count` tokens in every way that must not matter: tokens and logits of each way, on this rank."""
    from mindspeed_vita.inference.loading import load_model
    from mindspeed_vita.inference.request import ask
    from mindspeed_vita.inference.session import InferenceSession, SessionSettings
    from tests.inference_steps import Drive

    loaded = load_model(folder, tp=layout.tp_size, cp=layout.cp_size)
    found: dict[str, Any] = {}
    everyone = range(len(questions))

    def drive(travels: str = "auto") -> Drive:
        session = InferenceSession(loaded, SessionSettings(cache_memory=MEMORY, block_size=BLOCK, travels=travels))
        for number, question in enumerate(questions):
            session.runner.add(number, session.prompts.encode(ask(*question)), longest=4096)
        return Drive(session)

    chunked = {"pass-Q": ("queries", 2 * BLOCK), "pass-KV": ("keys", 2 * BLOCK), "one block a chunk": ("auto", BLOCK)}
    found["whole"] = drive().greedy(everyone, count)
    for name, (travels, chunk) in chunked.items():
        found[name] = drive(travels).greedy(everyone, count, chunk=chunk)
    alone = drive()
    found["one by one"] = {number: alone.greedy([number], count)[0][number] for number in everyone}
    found["blocks"] = alone.used
    return found


def pooled(layout: Any, *, folder: str, questions: list[Question], count: int, pooling: str) -> dict[str, Any]:
    """Greedy answers about pooled films on this rank, whole and in chunks of one block, which cut frames; and by the request loop."""
    from mindspeed_vita.inference.answer import generate
    from mindspeed_vita.inference.loading import load_model
    from mindspeed_vita.inference.request import ask
    from mindspeed_vita.inference.sampling import SamplingParams
    from mindspeed_vita.inference.session import InferenceSession, SessionSettings
    from tests.inference_steps import Drive

    loaded = load_model(folder, tp=layout.tp_size, cp=layout.cp_size, frame_pooling=pooling)
    found: dict[str, Any] = {}
    for name, chunk in (("whole", 1 << 20), ("one block a chunk", BLOCK)):
        session = InferenceSession(loaded, SessionSettings(cache_memory=MEMORY, block_size=BLOCK, tiles_in_flight=4))
        for number, question in enumerate(questions):
            session.runner.add(number, session.prompts.encode(ask(*question)), longest=4096)
        found[name] = Drive(session).greedy(range(len(questions)), count, chunk=chunk)[0]
    session = InferenceSession(loaded, SessionSettings(cache_memory=MEMORY, block_size=BLOCK))
    answers = generate(session, [ask(*question) for question in questions], SamplingParams(max_tokens=count))
    found["request loop"] = {number: list(answer.token_ids) for number, answer in enumerate(answers)}
    return found


def conversations(layout: Any, *, folder: str, questions: list[Question], turns: list[str], count: int, long: int) -> dict[str, Any]:
    """What the request loop finds on the first rank: turns over a cache and without one, hits and misses, preempted and not, cancelled."""
    from mindspeed_vita.inference.loading import load_model
    from mindspeed_vita.inference.session import InferenceSession, SessionSettings

    loaded = load_model(folder, tp=layout.tp_size, cp=layout.cp_size)
    found: dict[str, Any] = {}
    for part in (_turns, _hits, _preempted, _cancelled):
        memory = MEMORY if part is not _preempted else _few_blocks(loaded, layout.cp_size)
        session = InferenceSession(loaded, SessionSettings(cache_memory=memory, block_size=BLOCK))
        if session.ranks.first:
            with session.leading():
                found[part.__name__] = part(session, questions, turns, long if part is _preempted else count)
        else:
            session.serve()
    return found


def _loop(session: Any) -> Any:
    from mindspeed_vita.inference.request_loop import RequestLoop

    return RequestLoop(session, prefill_tokens=4 * BLOCK)


def _answers(loop: Any, requests: list[Any], count: int) -> list[tuple[int, ...]]:
    from mindspeed_vita.inference.answer import answer_all
    from mindspeed_vita.inference.sampling import SamplingParams

    return [answer.token_ids for answer in answer_all(loop, [(request, SamplingParams(max_tokens=count)) for request in requests])]


def _turns(session: Any, questions: list[Question], turns: list[str], count: int) -> dict[str, Any]:
    """Three turns about the first question's media, each over the cache of the one before, and then each from nothing."""
    from mindspeed_vita.data.sample import Message
    from mindspeed_vita.inference.request import Request, ask
    from mindspeed_vita.inference.sampling import SamplingParams

    request, loop, requests, answers, reused = ask(*questions[0]), _loop(session), [], [], []
    for turn in [None, *turns]:
        if turn is not None:
            said = session.loaded.tokenizer.decode(answers[-1], skip_special_tokens=True)
            messages = (*request.messages, Message("assistant", said), Message("user", turn))
            request = Request(messages=messages, images=request.images, videos=request.videos)
        loop.add(request, SamplingParams(max_tokens=count))
        updates = loop.step()
        reused.append(loop.scheduler.running[0].cached_tokens)
        while not loop.idle:
            updates = loop.step()
        answers.append(updates[0].answer.token_ids)
        requests.append(request)
    from_nothing = [_answers(_loop(session), [request], count)[0] for request in requests]  # a loop of its own forgets the cache
    return {"over the cache": answers, "from nothing": from_nothing, "reused": reused}


def _hits(session: Any, questions: list[Question], turns: list[str], count: int) -> list[list[tuple[int, ...]]]:
    from mindspeed_vita.inference.request import ask

    loop, requests = _loop(session), [ask(*question) for question in questions]
    return [_answers(loop, requests, count) for _ in range(2)]


def _few_blocks(loaded: Any, cp: int) -> int:
    """Memory for 14 blocks over all ranks: three of the short questions begin together, and their answers do not fit together."""
    from mindspeed_vita.inference.kv_cache import bytes_per_block

    language = loaded.recipe.model.language
    heads = language.num_kv_heads // loaded.layout.tp_size
    sizes = {"num_layers": language.num_layers, "block_size": BLOCK, "kv_heads": heads, "head_dim": language.head_dim}
    return 14 // cp * bytes_per_block(**sizes, dtype=next(loaded.model.parameters()).dtype)


def _preempted(session: Any, questions: list[Question], turns: list[str], count: int) -> dict[str, Any]:
    from mindspeed_vita.inference.request import ask

    loop = _loop(session)
    answers = _answers(loop, [ask(*questions[number]) for number in SHORT], count)
    return {"answers": answers, "preempted": loop.scheduler.num_preempted, "used": sum(counts.used for counts in loop.counts())}


def _cancelled(session: Any, questions: list[Question], turns: list[str], count: int) -> dict[str, Any]:
    """Requests cancelled before, while and after their prompt is computed, and one whose time is over."""
    from mindspeed_vita.inference.request import ask
    from mindspeed_vita.inference.sampling import SamplingParams

    loop, answers = _loop(session), {}
    numbers = [loop.add(ask(*question), SamplingParams(max_tokens=count)) for question in questions]
    late = loop.add(ask("Late?"), SamplingParams(max_tokens=count), time_limit=0.0)
    loop.cancel(numbers[-1])
    for number in numbers[:-1]:
        for update in loop.step():
            if update.answer is not None:
                answers[update.number] = update.answer
        loop.cancel(number)
    while not loop.idle:
        answers.update({update.number: update.answer for update in loop.step() if update.answer is not None})
    reasons = [answers[number].reason for number in (*numbers, late)]
    return {"reasons": reasons, "used": sum(counts.used for counts in loop.counts()), "kept": len(session.runner.prompts)}


def silence(layout: Any, *, timeout: float, seconds: float, leads: bool) -> str:
    """What the second rank hears after the first one was silent for so long; or why it gave up."""
    import time
    from datetime import timedelta

    import torch.distributed as dist

    from mindspeed_vita.inference.ranks import Ranks

    ranks = Ranks([layout.tp_cp_group], layout.tile_group_size, layout.tile_rank, timeout)
    try:
        if not ranks.first:
            return str(ranks.hear())
        if leads:
            ranks.lead()
        time.sleep(seconds)
        ranks.rest()
        ranks.tell("word")
        return ""
    except ConnectionError as error:
        return str(error)
    finally:
        dist.distributed_c10d._set_pg_timeout(timedelta(minutes=30), layout.tp_cp_group)
