"""What is published where, and bringing it."""
