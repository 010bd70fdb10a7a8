"""What enters other frameworks: MindSpeed-LLM for training, vLLM for serving. Nothing below imports it."""
