"""What a recipe costs before it runs: memory, work and bytes of a real step, traced on tensors without memory."""
