"""generation_config.json: how answers end, and what is never an answer."""

from __future__ import annotations

from typing import Any

from mindspeed_vita.checkpoint.hf.tokenizer import stop_ids
from mindspeed_vita.config.recipe import Recipe
from mindspeed_vita.hf.token_layout import VisionTokenIds


def special_ids(tokenizer: Any, recipe: Recipe) -> dict[str, int]:
    """Ids that config.json names: bos, eos, pad, and image, video and patch, which are the context tokens."""
    ids = VisionTokenIds.from_lookup(tokenizer.get_vocab().get)
    end, pad, *_ = stop_ids(tokenizer, recipe.data.template, recipe.model.language.family)
    return {"bos": pad, "eos": end, "pad": pad, "image": ids.img_context, "video": ids.vid_context, "patch": ids.patch_context}


def generation_config(tokenizer: Any, recipe: Recipe) -> dict[str, Any]:
    """Content of generation_config.json."""
    ids = VisionTokenIds.from_lookup(tokenizer.get_vocab().get)
    end, pad, *more = stop_ids(tokenizer, recipe.data.template, recipe.model.language.family)
    return {
        "bos_token_id": pad,
        "do_sample": False,
        "eos_token_id": sorted({end, pad, *more}),
        "pad_token_id": pad,
        # Placeholders of tiles are never an answer.
        "suppress_tokens": list(ids.placeholders),
    }
