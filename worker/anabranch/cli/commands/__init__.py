"""One file a command, or a group of them: its options, what it asks of the rest, and what it prints."""
