"""The card of an export: what hubs and people read in it, and that nobody's own text is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mindspeed_vita.checkpoint.hf.card import CARD, card_text, parameter_counts
from mindspeed_vita.checkpoint.hf.export import LONG_VITA, export_hf
from mindspeed_vita.checkpoint.hf.internvl_files import INTERNVL_LAYOUT
from mindspeed_vita.config import DataConfig, ModelConfig
from tests.tiny_checkpoint import TINY, make_tokenizer, random_weights, tiny_recipe


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_the_released_sizes_are_counted_and_named() -> None:
    counts = parameter_counts(ModelConfig())
    assert counts == {
        "vision tower": 304_012_288, "projector": 9_445_376, "language model": 14_770_033_664, "all": 15_083_491_328
    }  # fmt: skip
    text = card_text("x", ModelConfig(), DataConfig(), layout="a", dtype="bfloat16", usage="pass", licence="apache-2.0")
    assert "| parameters, all | 15,083,491,328 |" in text and "448 x 448 pixels, 256 tokens" in text and "1,310,720" in text


@pytest.mark.parametrize("layout", [LONG_VITA, INTERNVL_LAYOUT], ids=lambda layout: layout.family)
def test_an_export_has_a_card_that_a_hub_reads(tmp_path: Path, tokenizer: Any, layout: Any) -> None:
    done = export_hf(random_weights(), tiny_recipe(), tmp_path / "cats", tokenizer=tokenizer, layout=layout, card="mit")
    text = (tmp_path / "cats" / CARD).read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "mit", "library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": ["long-vita", "multimodal"]
    }  # fmt: skip
    assert body.strip().startswith("# cats") and layout.title in body and f"| {parameter_counts(TINY)['all']:,} |" in body
    code = body.split("```python\n")[1].split("```")[0]
    compile(code, "usage", "exec")
    assert '"cats"' in code and ("trust_remote_code" in code) == (layout is LONG_VITA)
    assert str(tmp_path) not in text and CARD not in done.xxh128


def test_without_the_option_there_is_no_card(tmp_path: Path, tokenizer: Any) -> None:
    export_hf(random_weights(), tiny_recipe(), tmp_path / "out", tokenizer=tokenizer)
    assert not (tmp_path / "out" / CARD).exists()


def test_a_card_is_replaced_unless_somebody_wrote_in_it(tmp_path: Path, tokenizer: Any) -> None:
    out, weights = tmp_path / "out", random_weights()
    for licence in ("mit", "apache-2.0"):
        export_hf(weights, tiny_recipe(), out, tokenizer=tokenizer, card=licence)
        assert f"license: {licence}\n" in (out / CARD).read_text()
    edited = (out / CARD).read_text().replace("# out", "# my cats")
    (out / CARD).write_text(edited)
    with pytest.raises(ValueError, match=r"holds files that no export writes: README.md; move them"):
        export_hf(weights, tiny_recipe(), out, tokenizer=tokenizer, card="mit")
    assert (out / CARD).read_text() == edited


def test_a_licence_that_no_hub_could_name_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="--card 'All rights: mine': expected a licence as model hubs name it"):
        export_hf(random_weights(), tiny_recipe(), tmp_path / "out", tokenizer=tokenizer, card="All rights: mine")
    assert not list(tmp_path.iterdir())
