"""Requests: which become runs, when, and how much room there is for them."""
