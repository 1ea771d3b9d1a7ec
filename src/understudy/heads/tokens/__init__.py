"""Heads that turn a chunk into discrete codes or tokens."""
