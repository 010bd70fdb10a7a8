"""Long-VITA inside MindSpeed-LLM's `pretrain`: the same models, attention, data and checkpoints as the built-in engine."""
