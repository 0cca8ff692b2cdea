"""What a user declares: tools, limits and agents, how they are checked, and how an App is found."""
