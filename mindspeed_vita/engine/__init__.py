"""The built-in engine: loop, step, objective, optimizer, feed, faults and metrics."""
