"""The third engine: our packs in transformers' Trainer over the exported model, with or without DeepSpeed ZeRO beneath it."""
