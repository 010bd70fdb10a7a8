"""What a decoder family says to Megatron: flags that follow from its traits, and a check that a command line agrees with them."""

from __future__ import annotations

import argparse
from typing import Optional

from mindspeed_vita.config import LanguageConfig, language_traits

SWITCHES = {"qkv_bias": "--add-qkv-bias", "qk_norm": "--qk-layernorm"}
"""Traits that Megatron has a switch for. VitaModel adds the bias of the attention's output itself (out_bias)."""


def decoder_flags(language: LanguageConfig) -> list[str]:
    """The flags of a decoder, besides its sizes.

    Args:
        language: family and sizes.
    """
    traits, width = language_traits(language.family), _own_width(language)
    return [*(flag for trait, flag in SWITCHES.items() if getattr(traits, trait)), *(["--kv-channels", str(width)] if width else [])]


def check_decoder(arguments: argparse.Namespace, language: LanguageConfig) -> list[str]:
    """A line for every flag that contradicts the decoder's family.

    Args:
        arguments: parsed, before Megatron's own checks.
        language: what the command line says as a recipe.
    """
    traits, name = language_traits(language.family), f"the decoder is of the family {language.family} (--vita-model-language-family)"
    problems = []
    for trait, flag in SWITCHES.items():
        wanted, given = getattr(traits, trait), bool(getattr(arguments, flag.removeprefix("--").replace("-", "_"), None))
        if wanted != given:
            problems.append(f"{flag} is missing; {name}" if wanted else f"{flag}: {name}; leave it out")
    width, told = _own_width(language), getattr(arguments, "kv_channels", None)
    if width and told is None:
        problems.append(f"--kv-channels {width} is missing; {name}, whose heads are {width} wide")
    elif told is not None and told != language.head_dim:
        problems.append(f"--kv-channels {told}: the heads are {language.head_dim} wide; say --vita-model-language-head-width too")
    return problems


def _own_width(language: LanguageConfig) -> Optional[int]:
    """Width of a head where Megatron would take another one."""
    return None if language.head_dim * language.num_heads == language.hidden_size else language.head_dim
