"""Calls of the model: which may be made now, of whom, how often, and what each comes to."""
