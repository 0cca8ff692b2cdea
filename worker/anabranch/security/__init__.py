"""Secrets: what is sealed or signed, what is hidden wherever something is printed, and who may do what in Kafka."""
