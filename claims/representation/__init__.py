"""Experiments of the family representation of the ledger."""
