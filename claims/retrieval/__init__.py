"""Experiments of the family retrieval of the ledger."""
