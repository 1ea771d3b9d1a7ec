"""Experiments of the family observation-only of the ledger."""
