"""Does every parallel layout give one process's loss and gradients, on this machine? Used by `vita doctor --parity` and by the tests."""
