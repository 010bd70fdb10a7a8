"""Checkpoints of MindSpeed-LLM and Megatron-LM: files of all ranks, read and written on any machine."""
