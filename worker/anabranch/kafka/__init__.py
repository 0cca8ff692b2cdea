"""The log: two narrow seams (`seam.py`), what implements them on Kafka, and their double in memory."""
