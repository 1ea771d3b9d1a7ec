"""Executors, planners made of planners, and actors. All state is a value that the caller keeps."""
