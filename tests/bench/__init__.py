"""The benchmark: `python -m tests.bench`, or `make bench`. It asserts nothing. See docs/benchmarks.md."""
