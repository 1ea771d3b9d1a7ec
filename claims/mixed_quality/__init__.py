"""Experiments about demonstrations of mixed quality."""
