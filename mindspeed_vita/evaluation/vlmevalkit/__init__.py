"""Long-VITA inside VLMEvalKit: a model class for its registry, and its run.py with the model registered. vlmeval is imported by
model.py and __main__.py only.
"""

from __future__ import annotations

NAME = "long_vita_native"
"""For VLMEvalKit's --model."""
