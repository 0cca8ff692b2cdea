"""See `job.py`."""
