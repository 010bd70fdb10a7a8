"""The built-in engine: loop, step, optimizer, feed, faults and metrics."""
