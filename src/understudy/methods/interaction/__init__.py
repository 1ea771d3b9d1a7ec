"""Methods that collect episodes while they train."""
