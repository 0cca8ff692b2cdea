"""A deterministic simulation: both roles, unchanged, over the log in memory, in virtual time, under seeded faults."""
