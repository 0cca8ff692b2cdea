"""Reading fast: fetches of our own, in sessions, one under way for each broker."""
