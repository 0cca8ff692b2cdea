"""What the model says: its stream of events, the message that they make, and the plan of its calls."""
