"""The patch ledger's engine: reads patches/, compares it with upstream's sources, applies it to its modules."""

from mindspeed_vita.integration.patching.apply import AppliedPatch, apply_ledger
from mindspeed_vita.integration.patching.ledger import load_ledger
from mindspeed_vita.integration.patching.verify import verify

__all__ = ["AppliedPatch", "apply_ledger", "load_ledger", "verify"]
