"""The layout, the model built for it, a pack cut for a rank, and the exchanges between ranks."""
