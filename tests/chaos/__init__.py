"""Chaos on a real Kafka, with a ledger that the outside world keeps; `python -m tests.chaos`. Holds no test."""
