"""What a run looks like: its log read and folded, what each event says in words, and all of it drawn."""
