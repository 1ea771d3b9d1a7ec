"""Experiments of the family sequence-execution of the ledger."""
