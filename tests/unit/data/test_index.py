"""Measuring and cutting long conversations: the longest run of turns that fits, each turn tokenised once."""

from dataclasses import replace

import pytest

from mindspeed_vita.data.fitting import fit_sample
from mindspeed_vita.data.measure import Measurer
from mindspeed_vita.data.media.limits import DecodeSettings, MediaLimits
from mindspeed_vita.data.media.paths import MediaError
from mindspeed_vita.data.sample import Message, Sample
from mindspeed_vita.data.templates import get_template
from mindspeed_vita.data.tokenizer import vision_token_ids

LIMITS = MediaLimits(tokens_per_tile=4, tile_size=28, min_tiles=1, max_tiles=12, max_frames=8, max_fps=1, sampler="uniform")


def measure(tokenizer, sample: Sample, root: str = "."):
    ids = vision_token_ids(tokenizer)
    return Measurer(tokenizer=tokenizer, template=get_template("qwen2"), ids=ids, decoding=DecodeSettings()).measure(sample, root)


def fit(measured, seq_length: int, **limits):
    """The fitted sample, or None where it does not fit."""
    try:
        return fit_sample(measured, seq_length=seq_length, max_images=100, limits=replace(LIMITS, **limits))
    except MediaError as error:
        assert "does not fit a pack" in error.reason
        return None


def dialogue(num_messages: int, *, tag_every: int = 0) -> Sample:
    tagged = [bool(tag_every) and place % tag_every == 0 for place in range(num_messages)]
    texts = [("<image>" if tag else "") + "word " * (place % 5) for place, tag in enumerate(tagged)]
    roles = ["user" if place % 2 == 0 else "assistant" for place in range(num_messages)]
    return Sample(tuple(map(Message, roles, texts)), ("p.png",) * sum(tagged), ())


class CountingTokenizer:
    """The tokenizer, with the texts it was given."""

    def __init__(self, tokenizer) -> None:
        self.convert_tokens_to_ids, self.get_vocab = tokenizer.convert_tokens_to_ids, tokenizer.get_vocab
        self.added_tokens_decoder = tokenizer.added_tokens_decoder
        self.backend_tokenizer = self
        self._encode = tokenizer.backend_tokenizer.encode
        self.texts: list[str] = []

    def __len__(self) -> int:
        return len(self.get_vocab())

    def encode(self, text, **options):
        self.texts.append(text)
        return self._encode(text, **options)


def test_a_long_conversation_is_tokenised_once(tokenizer):
    counting = CountingTokenizer(tokenizer)
    sample = Sample(tuple(Message(("user", "assistant")[place % 2], f"turn {place}") for place in range(600)), (), ())
    assert 0 < fit(measure(counting, sample), 64).num_messages < 600
    assert sum(text.count("turn") for text in counting.texts) == 600


@pytest.mark.parametrize("num_messages", [2, 7, 16, 25])
@pytest.mark.parametrize("tag_every", [0, 1, 3])
def test_the_longest_run_of_turns_that_fits_is_kept(tokenizer, tmp_path, picture, num_messages, tag_every):
    picture(90, 60).save(tmp_path / "p.png")
    sample = dialogue(num_messages, tag_every=tag_every)
    measured = measure(tokenizer, sample, str(tmp_path))
    ends = sorted({*range(2, num_messages + 1, 2), num_messages})
    smallest = {end: fit(measure(tokenizer, sample.first_turns(end), str(tmp_path)), 10_000, max_tiles=1).num_tokens for end in ends}
    for room in range(10, max(smallest.values()) + 3, 7):
        fitted = fit(measured, room)
        fits = [end for end in ends if smallest[end] <= room]
        assert (fitted is None) == (not fits)
        if fits:
            assert fitted.num_messages == fits[-1] and fitted.num_tokens <= room
            assert len(fitted.media.grids) == len(sample.first_turns(fits[-1]).images)
