"""Native checkpoints: step folders that are whole or absent, sharded tensors, optimizer state."""
