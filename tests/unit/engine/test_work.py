"""What is counted as the work of a step, and the share of a device's peak."""

from __future__ import annotations

from dataclasses import replace

from mindspeed_vita.config import recipe_from_dict
from mindspeed_vita.engine.work import count, peak_of, speeds


def test_a_frozen_language_model_has_no_gradients_of_its_weights():
    model = recipe_from_dict({}).model
    amounts = {"tokens": 100, "pairs": 5050, "rows": 10, "tiles": 0}
    everything, frozen = (count(model, modules, **amounts) for modules in (("language",), ("projector",)))
    assert 2 * everything.linear == 3 * frozen.linear and 2 * everything.head == 3 * frozen.head
    assert everything.attention == frozen.attention
    assert (everything + frozen).total == everything.total + frozen.total


def test_attention_counts_documents():
    model = recipe_from_dict({}).model
    one = count(model, ("language",), tokens=8, pairs=36, rows=0, tiles=0)
    assert one.attention == 12 * model.language.num_layers * model.language.num_heads * model.language.head_dim * 36
    assert replace(one, attention=0).total == one.linear


def test_the_share_of_a_peak_is_given_where_the_peak_is_known():
    assert peak_of("NVIDIA H100 PCIe", 0.0) == 756e12 and peak_of("NVIDIA H100 80GB HBM3", 0.0) == 989e12
    assert peak_of("NVIDIA H100 NVL", 0.0) is None and peak_of("NVIDIA H200 NVL", 0.0) is None, "slower than the SXM modules"
    assert peak_of("cpu", 0.0) is None and peak_of("Ascend910B2", 350.0) == 350e12
    assert speeds(4e12, 2.0, 2, None) == {"tflops_per_device": 1.0}
    assert speeds(4e12, 2.0, 2, 4e12) == {"tflops_per_device": 1.0, "mfu": 0.25}
