"""Objectives that train an encoder on its own."""
