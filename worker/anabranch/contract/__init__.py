"""The contract: what each kind of record looks like, and `schemas/`, which is written from it."""
