"""From a request to the tokens of its prompt, up to where the answer begins; the same code as in training makes them."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import Any, Optional

import numpy as np

from mindspeed_vita.config import Recipe
from mindspeed_vita.data.assemble import EncodedSample, Medium, encode_sample
from mindspeed_vita.data.batch import IGNORE
from mindspeed_vita.data.media.decoder import Decoder, get_decoder
from mindspeed_vita.data.media.limits import media_limits
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.data.prepare import decode_settings
from mindspeed_vita.data.sample import Message, Sample
from mindspeed_vita.data.templates import get_template
from mindspeed_vita.data.tokenizer import vision_token_ids
from mindspeed_vita.hf.frame_pooling import read_pooling
from mindspeed_vita.hf.token_layout import ReservedText
from mindspeed_vita.inference.free_tokenizer import FreeTokenizer
from mindspeed_vita.inference.request import Request


class PromptEncoder:
    """Turns requests into tokens and media. Several threads may use it at a time.

    Args:
        recipe: settings of the data section and the architecture.
        tokenizer: with the vision tokens.
        frame_pooling: how the frames of videos are pooled (hf/frame_pooling.py); None: not at all.

    Raises:
        ValueError: frames cannot be pooled so.
    """

    def __init__(self, recipe: Recipe, tokenizer: Any, frame_pooling: Optional[str] = None) -> None:
        self.recipe, self.tokenizer, self._free = recipe, tokenizer, FreeTokenizer(tokenizer)
        self.pooling = read_pooling(frame_pooling, recipe.model.tokens_per_tile)
        self.ids = vision_token_ids(tokenizer)
        model = recipe.model
        self.limits = media_limits(recipe.data, tokens_per_tile=model.tokens_per_tile, tile_size=model.vision.tile_size)
        self.decoding = decode_settings(recipe.data, model.vision.normalization)
        self.decoder_name = ""
        """Which of this process's decoders reads headers. One with a name of its own may do so while another thread decodes."""
        self._decoder_lock = threading.Lock()

    def encode(self, request: Request) -> EncodedSample:
        """The prompt's tokens, and its media ready to be cut.

        Raises:
            ValueError: tags and media disagree, a medium cannot be used, or the text holds a reserved token or half a surrogate pair.
        """
        reserved = ReservedText(self.tokenizer)
        for text in (message.content for message in request.messages) if request.text is None else (request.text,):
            if not _is_whole(text):
                raise ValueError("the text holds half of a surrogate pair, which is no character; expected text that UTF-8 can hold")
            problem = reserved.problem(text)
            if problem is not None:
                raise ValueError(problem)
        if request.text is not None:
            return self._plain(request.text)
        template = get_template(self.recipe.data.template)
        # An empty answer gives its header; what training would supervise after it is what remains to be generated.
        messages = (*request.messages, Message("assistant", ""))
        encoded = encode_sample(
            Sample(messages, request.images, request.videos),
            [*map(self._picture, request.images), *map(self._video, request.videos)],
            tokenizer=self._free,
            template=template,
            ids=self.ids,
            limits=self.limits,
            sample_id=0,
            source_id=0,
            source="prompt",
            root=os.sep,
        )
        unsupervised = np.flatnonzero(encoded.labels_T[:-1] == IGNORE)
        keep = int(unsupervised[-1]) + 2  # the label at t is the token at t + 1
        return replace(encoded, tokens_T=encoded.tokens_T[:keep], labels_T=encoded.labels_T[:keep])

    def _plain(self, text: str) -> EncodedSample:
        """A text's own tokens."""
        tokens = np.array(self.tokenizer(text)["input_ids"], dtype=np.int64)
        none = np.zeros(0, dtype=np.int64)
        return EncodedSample(0, 0, "prompt", os.sep, tokens_T=tokens, labels_T=none, tile_starts_N=none, media=())

    def _decoder(self) -> Decoder:
        return get_decoder(self.decoding, self.decoder_name)

    def _picture(self, path: str) -> Medium:
        path = os.path.abspath(path)
        try:
            with self._decoder_lock:
                size = self._decoder().probe_picture(path, os.sep)
            grid = self.limits.grid(size, self.limits.max_tiles)
        except MediaError as error:
            raise ValueError(f"image {error.path} {error.reason}") from error
        return Medium(path, grid, None, ())

    def _video(self, path: str) -> Medium:
        path = os.path.abspath(path)
        try:
            with self._decoder_lock:
                header = self._decoder().probe_video(path, os.sep)
        except MediaError as error:
            raise ValueError(f"video {error.path} {error.reason}") from error
        numbers = tuple(self.limits.frames(header, self.limits.max_frames))
        return Medium(path, None, header, numbers, tuple(self.pooling.factors(len(numbers))))


def _is_whole(text: str) -> bool:
    """Whether the text has a UTF-8 form. JSON may write half of a surrogate pair, which a tokenizer does not take."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
