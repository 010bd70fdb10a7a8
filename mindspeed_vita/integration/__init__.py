"""What enters other training frameworks: MindSpeed-LLM. Nothing below imports it."""
