"""Without actions: they imitate what episodes show, where few or no actions were recorded."""
