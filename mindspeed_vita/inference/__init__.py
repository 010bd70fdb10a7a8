"""Answers from native and exported checkpoints."""
