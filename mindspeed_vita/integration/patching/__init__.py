"""The patch ledger at run time: reads patches/manifest.toml, compares it with what is installed, and applies it or refuses."""

from mindspeed_vita.integration.patching.apply import AppliedPatch, apply_ledger
from mindspeed_vita.integration.patching.ledger import load_ledger

__all__ = ["AppliedPatch", "apply_ledger", "load_ledger"]
