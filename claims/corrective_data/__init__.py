"""Experiments of the family corrective-data of the ledger."""
