"""Apps as users write them, for tests that run workers. Hold no test."""
