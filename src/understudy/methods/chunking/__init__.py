"""Long chunks of actions."""
