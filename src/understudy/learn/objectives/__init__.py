"""Objectives (losses) that train an encoder on its own."""
