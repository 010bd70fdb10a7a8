"""Greedy decoding of a Hugging Face folder, exported or released, with the modelling code of this package: no remote code runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.checkpoint.hf.config import family_of, model_config
from mindspeed_vita.checkpoint.hf.load import read_config
from mindspeed_vita.checkpoint.hf.processor import read_frame_pooling, read_json, read_processor
from mindspeed_vita.checkpoint.hf.tokenizer import stop_ids
from mindspeed_vita.checkpoint.hf.weights import open_weights
from mindspeed_vita.config import language_traits
from mindspeed_vita.config.languages import RELEASED
from mindspeed_vita.data.templates import get_template
from mindspeed_vita.data.tokenizer import load_tokenizer
from mindspeed_vita.hf.configuration_long_vita import config_class
from mindspeed_vita.hf.image_processing_long_vita import LongVitaImageProcessor
from mindspeed_vita.hf.modeling_long_vita import causal_class
from mindspeed_vita.hf.processing_long_vita import LongVitaProcessor
from mindspeed_vita.inference.request import Answer, Request
from mindspeed_vita.platform import get_platform


class HFGenerator:
    """An exported model that answers."""

    def __init__(self, model: Any, processor: LongVitaProcessor, family: str = RELEASED) -> None:
        self.model, self.processor, self.family = model.eval(), processor, family

    def generate(self, request: Request, *, max_new_tokens: int) -> Answer:
        """See Generator."""
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = self.processor(text=text, images=list(request.images), videos=list(request.videos), return_tensors="pt")
        prompt_tokens = inputs["input_ids"].shape[1]
        stops = list(stop_ids(self.processor.tokenizer, self.processor.template, self.family))
        options = {"max_new_tokens": max_new_tokens, "do_sample": False, "eos_token_id": stops, "pad_token_id": stops[1]}
        output = self.model.generate(**inputs.to(self.model.device), **options)
        tokens = output[0, prompt_tokens:].tolist()
        if tokens and tokens[-1] in stops:
            tokens.pop()
        text = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
        return Answer(text=text, token_ids=tuple(tokens), prompt_tokens=prompt_tokens)


def load_hf(
    folder: str | Path,
    *,
    tokenizer: Optional[str | Path] = None,
    max_frames: Optional[int] = None,
    frame_pooling: Optional[str] = None,
) -> HFGenerator:
    """Load a Long-VITA folder on this process's best device.

    Args:
        folder: exported or released.
        tokenizer: folder; None takes the tokenizer in `folder`.
        max_frames: most frames taken from a video; None takes the folder's setting.
        frame_pooling: how the frames of videos are pooled, see hf/frame_pooling.py; None takes the folder's setting.

    Raises:
        ValueError: not such a folder, no tokenizer in it, or weights that are broken or not those of its config.json.
    """
    folder = Path(folder)
    processor = load_processor(folder, tokenizer=tokenizer, max_frames=max_frames, frame_pooling=frame_pooling)
    # transformers would fill what is missing with random values and answer with noise
    open_weights(folder, "long_vita", model_config(read_config(folder)))
    family = _family(folder)
    base = language_traits(family).hf_base
    model = causal_class(base).from_pretrained(folder, config=config_class(base).from_pretrained(folder), dtype="auto")
    return HFGenerator(model.to(get_platform().device), processor, family)


def load_processor(
    folder: str | Path,
    *,
    tokenizer: Optional[str | Path] = None,
    max_frames: Optional[int] = None,
    frame_pooling: Optional[str] = None,
) -> LongVitaProcessor:
    """The processor of an exported folder; for a released one, which has no processor files, the settings that import gives it.

    Raises:
        ValueError: no Long-VITA config.json, or no tokenizer.
    """
    folder = Path(folder)
    config, data = config_class(language_traits(_family(folder)).hf_base).from_pretrained(folder), read_processor(folder)
    images = LongVitaImageProcessor(
        tile_size=config.vision_config.image_size,
        min_tiles=data.min_tiles,
        max_tiles=data.max_tiles,
        tiling=data.tiling,
        pixels=data.pixels,
        normalization=config.visual.get("normalization", "imagenet"),
    )
    return LongVitaProcessor(
        images,
        load_tokenizer(tokenizer or folder, get_template(data.template)),
        tokens_per_tile=config.tokens_per_tile,
        max_frames=data.max_frames if max_frames is None else max_frames,
        max_fps=data.max_fps,
        frame_sampler=data.frame_sampler,
        template=data.template,
        frame_pooling=read_frame_pooling(folder) if frame_pooling is None else frame_pooling,
    )


def _family(folder: Path) -> str:
    """The decoder family of a Long-VITA folder.

    Raises:
        ValueError: no Long-VITA folder, or one over an unknown decoder.
    """
    family = family_of(read_json(folder / "config.json")) if (folder / "config.json").is_file() else None
    if family is None:
        raise ValueError(f"{folder} is no Long-VITA folder: expected a config.json with model_type 'long_vita'")
    return family
