"""Methods that learn from observations without actions."""
