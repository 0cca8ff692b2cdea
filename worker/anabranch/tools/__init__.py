"""The tool role: executes the calls of one queue, under their limits, and appends the results."""
