"""Heads that turn a chunk into codes or tokens."""
