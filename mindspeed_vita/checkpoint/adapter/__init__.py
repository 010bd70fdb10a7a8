"""Adapters without a model: opened from native, MindSpeed-LLM's and peft's folders, merged into weights, written for peft."""
