"""Silences warnings of megatron.core and torch that no user can act on. The standard library alone, like wording.py."""

from __future__ import annotations

import logging
import warnings


def quiet_imports() -> None:
    """Silences what megatron.core warns of on import and use, and torch's renamings that only megatron.core can follow.

    Call it before the first import of megatron.core. The command line does so before every command.
    """
    # megatron.core warns about every optional package it would like, and calls collectives by names that new torch deprecates
    deprecated = r"`torch\.distributed\..*is deprecated.*"
    for message in (".*Transformer Engine.*", ".*Apex is not installed.*", ".*transformer_engine.*", deprecated):
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", module=r"megatron\.core.*")
    # from 0.19 on, each start says that GPTModel gets fixes only and that another class will follow it: nothing a user can act on
    logging.getLogger("megatron.core.models.gpt.gpt_model").setLevel(logging.ERROR)
