"""The model classes that lmms-eval calls. A task with messages gets LongVitaChat, one with texts and visuals LongVita.

lmms-eval 0.7 deals a task's rows to the processes that torchrun starts. Here these processes share one model (tp x cp), so their
requests are gathered, answered together, and dealt back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Optional

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

from mindspeed_vita.evaluation.lmms_eval.requests import choosing, parts_of_messages, parts_of_visuals
from mindspeed_vita.evaluation.lmms_eval.start import check_process_group, open_shared
from mindspeed_vita.evaluation.parts import request_of_parts
from mindspeed_vita.evaluation.pictures import PictureFolder
from mindspeed_vita.inference.request import Request
from mindspeed_vita.inference.sampling import SamplingParams


class LongVita(lmms):
    """Long-VITA for tasks whose rows are a text and visuals.

    Args:
        pretrained: native run or step folder, Hugging Face folder or MindSpeed-LLM folder.
        media_dir: folder for pictures that tasks hold in memory; None makes a temporary one. Several nodes need one that all see.
        batch_size, max_batch_size: accepted; requests are batched continuously, as many as the cache has room for.
        device: lmms-eval's; DEVICE in the environment chooses it here. One of another kind is refused.
        options: tp, cp, max_frames, max_pixels, tokenizer, recipe, precision, frame_pooling, rope_scaling, cache_memory, prefill_chunk,
            rank_timeout.

    Raises:
        ValueError: as load_session, or an unknown option.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        media_dir: Optional[str] = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Optional[str] = None,
        **options: Any,
    ) -> None:
        super().__init__()
        check_process_group()
        self.shared = open_shared(pretrained, options)
        found = self.shared.session.loaded.device
        if device is not None and str(device).partition(":")[0] != found.type:
            raise ValueError(f"--device {device}, and the model is on {found.type}; leave --device out, or set DEVICE in the environment")
        self._rank, self._world_size = self.shared.session.ranks.rank, self.shared.session.ranks.size
        self._temporary = tempfile.TemporaryDirectory(prefix="vita_lmms_eval_")
        self.pictures = PictureFolder(Path(media_dir or self._temporary.name))

    @property
    def device(self) -> Any:
        """Where the model is; lmms-eval's counters go there."""
        return self.shared.session.loaded.device

    def _request(self, arguments: tuple[Any, ...]) -> tuple[Request, dict[str, Any]]:
        """A generation's request and settings."""
        context, settings, doc_to_visual, doc_id, task, split = arguments
        visuals = doc_to_visual(self.task_dict[task][split][doc_id])
        return request_of_parts([("user", parts_of_visuals(context, visuals, self.pictures))]), settings

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answers; see lmms."""
        asked: list[tuple[str, Request, SamplingParams]] = []
        for instance in requests:
            name = f"task {instance.args[-2]}, document {instance.args[-3]}"
            with _named(name):
                request, settings = self._request(instance.args)
                asked.append((name, request, choosing(settings)))
        results = []
        for instance, answer in zip(requests, self.shared.answers(asked), strict=True):
            self.cache_hook.add_partial("generate_until", instance.args, answer.text)
            counts = TokenCounts(input_tokens=answer.prompt_tokens, output_tokens=len(answer.token_ids))
            results.append(GenerationResult(text=answer.text, token_counts=counts))
        return results

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """For each continuation the mean of its tokens' negative log-probabilities, and whether greedy decoding would give it.

        lmms-eval's multiple-choice tasks take the smallest value, and its own models return the loss; so does this one. A space before the
        continuation is dropped, because an answer begins a turn. A pair comes inside a GenerationResult: from 0.7 on, lmms-eval makes a
        text of a bare pair, and its multiple-choice tasks then fail for every model.
        """
        asked = []
        for instance in requests:
            context, continuation, *rest = instance.args
            name = f"task {rest[-2]}, document {rest[-3]}" if rest else "a continuation without context"
            with _named(name):
                visuals: Any = []
                if rest:
                    doc_to_visual, doc_id, task, split = rest
                    doc = self.task_dict[task][split][doc_id]
                    continuation = continuation(doc) if callable(continuation) else continuation
                    visuals = doc_to_visual(doc) if callable(doc_to_visual) else []
                request = request_of_parts([("user", parts_of_visuals(context, visuals, self.pictures))])
                tokens = self.shared.tokens_of(str(continuation).lstrip(" "))
                if not tokens:
                    raise ValueError("the continuation is empty; expected a text to score")
            asked.append((name, request, SamplingParams(max_tokens=len(tokens), forced=tokens, logprobs=1)))
        results = []
        for answer in self.shared.answers(asked):
            loss = -sum(token.logprob or 0.0 for token in answer.tokens) / len(answer.tokens)
            greedy = all(token.top[0][0] == token.token for token in answer.tokens)
            results.append(GenerationResult(text=(loss, greedy)))
        return results

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not supported."""
        raise NotImplementedError("long_vita answers tasks of one round; choose another task")


class LongVitaChat(LongVita):
    """Long-VITA for tasks whose rows are messages, pictures and videos between their texts."""

    is_simple = False

    def _request(self, arguments: tuple[Any, ...]) -> tuple[Request, dict[str, Any]]:
        _, doc_to_messages, settings, doc_id, task, split = arguments
        messages: Iterable[Any] = doc_to_messages(self.task_dict[task][split][doc_id])
        return request_of_parts(parts_of_messages(messages, self.pictures)), settings


class _named:
    """Says in a ValueError whose fault it is."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Optional[BaseException], trace: Any) -> None:
        if isinstance(error, ValueError):
            raise ValueError(f"{self.name}: {error}") from error
