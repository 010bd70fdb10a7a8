"""What the workers of a LayoutPool carry out for the test of visual needles."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def asked(layout: Any, *, model: str, folder: str, grid: dict[str, Any]) -> dict[str, tuple[str, bool]]:
    """Answers of a needle test by case, and whether each is right; on the first rank, nothing on the others."""
    from mindspeed_vita.evaluation.needle_grid import Grid
    from mindspeed_vita.evaluation.needle_media import NeedleMedia
    from mindspeed_vita.evaluation.needle_record import NeedleRecord
    from mindspeed_vita.evaluation.needle_run import answer_cases
    from mindspeed_vita.inference.request_loop import RequestLoop
    from mindspeed_vita.inference.session import SessionSettings, load_session

    settings = SessionSettings(cache_memory=1 << 24, block_size=64)
    session = load_session(model, settings=settings, tp=layout.tp_size, cp=layout.cp_size, max_frames=64)
    if not session.ranks.first:
        session.serve()
        return {}
    wanted = Grid(**grid)
    record = NeedleRecord(Path(folder), {})
    media = NeedleMedia(Path(folder) / "media", session.loaded.recipe.model.vision.tile_size)
    with session.leading():
        answer_cases(RequestLoop(session, prefill_tokens=128), wanted.cases(), wanted.media, media, record, lambda done: None)
    assert any(row["cached_tokens"] for row in record.rows.values()), "haystacks share their beginning"
    return {key: (row["answer"], row["right"]) for key, row in record.rows.items()}
