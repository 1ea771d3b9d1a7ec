"""Experiments of the family evaluation of the ledger."""
