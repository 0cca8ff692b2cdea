"""What the model is sent: the next request of a run, from its fold and its agent, and whether that fits."""
