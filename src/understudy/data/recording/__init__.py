"""Recordings: writing them safely, and recovering what a crash left."""
