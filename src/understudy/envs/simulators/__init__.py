"""Adapters to simulators of other packages. Each belongs to an optional dependency (extra)."""
