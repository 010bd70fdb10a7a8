"""What a server allows and what it is called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from mindspeed_vita.serving.access import ApiKeys
from mindspeed_vita.serving.conversation import RequestLimits
from mindspeed_vita.serving.media_rules import MediaRules


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Settings of the HTTP side. Times are seconds."""

    model: str
    """The name that requests ask for."""
    keys: ApiKeys = field(default_factory=ApiKeys)
    """Who may ask."""
    host: str = "127.0.0.1"
    """Where the server listens. Without keys, requests must be sent to this name or a loopback name."""
    rules: MediaRules = field(default_factory=MediaRules)
    """Where media may come from."""
    limits: RequestLimits = field(default_factory=RequestLimits)
    """What one request may bring."""
    max_body: int = 256 << 20
    """Bytes of a request."""
    body_seconds: float = 60.0
    """How long a body may take to arrive."""
    max_wait: float = 300.0
    """How long a request may wait for its first text."""
    max_answer: Optional[int] = None
    """Tokens of an answer at most; None: as many as there is room for."""
    send_seconds: float = 60.0
    """How long a client may take for one piece of a stream."""
