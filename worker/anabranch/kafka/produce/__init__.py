"""Writing fast: a producer of our own, in batches, in order."""
