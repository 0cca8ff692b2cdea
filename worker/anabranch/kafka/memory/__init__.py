"""A Kafka cluster in memory: the double that passes the same conformance suite as Kafka."""
