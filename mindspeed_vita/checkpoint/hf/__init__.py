"""Hugging Face folders: configuration, tokenizer, processor and weights, written and read."""
