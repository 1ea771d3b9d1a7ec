"""Experiments of the family conditioning of the ledger."""
