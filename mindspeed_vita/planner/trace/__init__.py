"""The real training step of one rank of any cluster, run on tensors without memory. Nothing here knows the model."""
