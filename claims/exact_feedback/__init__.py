"""What one piece of feedback is worth, where all values can be computed."""
