"""What the server counts, for Prometheus. Each server has a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mindspeed_vita.inference.request_loop import RequestLoop
from mindspeed_vita.serving.engine import Engine

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_RATES = (1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """Counters of one server.

    Args:
        engine: whose requests are counted.
        loop: whose cache is looked at. Only lengths are read, so no lock is needed.
    """

    def __init__(self, engine: Engine, loop: RequestLoop) -> None:
        self._registry = registry = CollectorRegistry()
        self.responses = Counter("vita_responses", "Responses by path and status.", ("path", "status"), registry=registry)
        self.rejected = Counter("vita_rejected", "Requests that got no answer, by reason.", ("reason",), registry=registry)
        self.prompt_tokens = Counter("vita_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.cached_tokens = Counter("vita_prefix_hit_tokens", "Tokens of prompts that the cache had already.", registry=registry)
        self.answer_tokens = Counter("vita_answer_tokens", "Tokens of answers.", registry=registry)
        self.first_token = Histogram("vita_first_token_seconds", "From the request to its first text.", buckets=_SECONDS, registry=registry)
        self.rate = Histogram("vita_tokens_per_second", "Tokens a second of each answer.", buckets=_RATES, registry=registry)
        scheduler = loop.scheduler
        for name, text, read in (
            ("vita_requests", "Choices that arrive, wait or run.", lambda: engine.num_requests),
            ("vita_requests_waiting", "Sequences that wait for a place.", lambda: len(scheduler.waiting)),
            ("vita_requests_running", "Sequences that are computed.", lambda: len(scheduler.running)),
            ("vita_cache_used_share", "Share of the cache's blocks that running sequences use.", lambda: loop.pool.used_share),
            ("vita_preemptions", "Sequences that gave their blocks up so far.", lambda: scheduler.num_preempted),
        ):
            Gauge(name, text, registry=registry).set_function(read)

    def text(self) -> bytes:
        """Everything in Prometheus' format."""
        return generate_latest(self._registry)
