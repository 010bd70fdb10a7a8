"""A decoder with weights converted from transformers' own, beside that one; runs in the workers of a layout's pool."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from mindspeed_vita.checkpoint.hf.config import rope_parameters
from mindspeed_vita.checkpoint.mapping.families import family_rules
from mindspeed_vita.checkpoint.mapping.rules import convert_to_native
from mindspeed_vita.checks.parity.full_tensors import join_slices, take_slice
from mindspeed_vita.config import LanguageConfig, LanguageTraits, RopeScalingConfig, language_traits, recipe_from_dict, register_language
from mindspeed_vita.parallel.layout import ParallelLayout
from tests.parity.native_model import text_inputs
from tests.tiny_checkpoint import TINY, random_weights

PAGE = Path(__file__).parents[2] / "docs" / "add_a_decoder.md"
SIZES: dict[str, Any] = {
    "num_layers": 3, "hidden_size": 64, "num_heads": 8, "num_kv_heads": 2, "ffn_hidden_size": 160, "vocab_size": 512, "max_positions": 4096,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "family": "llama3", "rope_base": 5e5, "norm_eps": 1e-5,
    "rope_scaling": RopeScalingConfig(kind="llama3", factor=8.0, original_positions=64),
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen2-tied": {"tie_embeddings": True},
    "qwen3": {"family": "qwen3", "head_width": 12},
    "qwen3-tied": {"family": "qwen3", "head_width": 12, "tie_embeddings": True},
    "llama3": LLAMA,
    "llama3-tied": {**LLAMA, "tie_embeddings": True},
    "every-bias": {**LLAMA, "family": "biased"},
}
TOKENS = torch.randint(0, 512, (97,), generator=torch.Generator().manual_seed(2)).tolist()


def language_of(case: str) -> LanguageConfig:
    """The decoder of a case. The third family is the one of the documentation page."""
    exec(re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1], {})  # type: ignore[index]
    # transformers' Llama with attention_bias has biases on all four projections; no published model is like that
    register_language("biased", LanguageTraits(hf_model_type="biased", hf_base="Llama", qkv_bias=True, out_bias=True))
    return LanguageConfig(**{**SIZES, **CASES[case]})


def run(layout: ParallelLayout, case: str, recompute: str = "none") -> dict[str, Any]:
    """Largest errors of our loss, logits and gradients against transformers', each relative to the largest entry; and what was compared."""
    from mindspeed_vita.parallel.build import build_model

    language = language_of(case)
    config = replace(TINY, language=language)
    reference = _reference(language)
    state = {name: tensor for name, tensor in reference.state_dict().items() if name in dict(reference.named_parameters())}
    weights = dict(convert_to_native(state, family_rules(language.family, config)))
    rest = {name: tensor for name, tensor in random_weights(config).items() if not name.startswith("language.")}
    train = {"precision": "fp32", "recompute": recompute}
    recipe = replace(recipe_from_dict({"parallel": {"tp": layout.tp_size}, "train": train}), model=config)
    model = build_model(recipe, layout)
    parameters = dict(model.named_parameters())
    assert parameters.keys() == weights.keys() | rest.keys(), parameters.keys() ^ (weights.keys() | rest.keys())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(take_slice(name, {**weights, **rest}[name], layout.tp_rank, layout.tp_size))
    loss, logits, gradients = _step(model, layout)
    expected_logits = reference(torch.tensor([TOKENS[:-1]])).logits[0]
    expected_loss = F.cross_entropy(expected_logits, torch.tensor(TOKENS[1:]), reduction="sum")
    expected_loss.backward()
    wanted = dict(convert_to_native({name: reference.get_parameter(name).grad for name in state}, family_rules(language.family, config)))
    assert all(float(gradient.abs().max()) > 0 for gradient in wanted.values()), "a gradient of nothing would show nothing"
    return {
        "loss": abs(float(loss) / float(expected_loss) - 1),
        "logits": _error(logits, expected_logits),
        "gradients": {name: _error(gradients[name], gradient) for name, gradient in wanted.items()},
        "norms": sum("_layernorm.weight" in name and "self_attention" in name for name in wanted),
        "biases": sum(name.endswith("bias") for name in wanted),
    }


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.abs().max())


def _step(model: Any, layout: ParallelLayout) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Loss, logits and whole gradients, which megatron reduces as in training."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    from mindspeed_vita.platform.megatron_compat import finalize_model_grads

    settings = DistributedDataParallelConfig(grad_reduce_in_fp32=True, overlap_grad_reduce=False, use_distributed_optimizer=False)
    model.requires_grad_(True)
    for part in (model.vision, model.projector):
        part.requires_grad_(False)
    model.trainable = frozenset({"language"})
    wrapped = DistributedDataParallel(model.config, settings, model)
    inputs, labels = text_inputs(TOKENS[:-1]), torch.tensor(TOKENS[1:])
    inputs = replace(inputs, labels_T=labels, weights_T=torch.ones(len(labels)), supervised_Q=torch.arange(len(labels)))
    loss = wrapped(inputs).sum()
    loss.backward()
    finalize_model_grads([wrapped])
    with torch.no_grad():
        logits = model.logits(inputs, torch.arange(len(labels)))
    mine = {name: p.main_grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    parts: list[Any] = [None] * layout.tp_size
    dist.all_gather_object(parts, mine, group=layout.tp_group)
    return loss.detach(), logits, {name: join_slices(name, [part[name] for part in parts]) for name in mine}


def _reference(language: LanguageConfig) -> Any:
    """transformers' own model with random weights, norms away from one."""
    import transformers

    traits = language_traits(language.family)
    config = getattr(transformers, f"{traits.hf_base}Config")(
        hidden_size=language.hidden_size, intermediate_size=language.ffn_hidden_size, num_hidden_layers=language.num_layers,
        num_attention_heads=language.num_heads, num_key_value_heads=language.num_kv_heads, vocab_size=language.vocab_size,
        max_position_embeddings=language.max_positions, rope_parameters=rope_parameters(language), rms_norm_eps=language.norm_eps,
        tie_word_embeddings=language.tie_embeddings, attention_bias=traits.qkv_bias, head_dim=language.head_dim,
    )  # fmt: skip
    model = getattr(transformers, f"{traits.hf_base}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.dim() == 1 and bool(parameter.eq(1).all())
            parameter.copy_(1 + 0.2 * noise if is_norm else 0.1 * noise)
    return model
