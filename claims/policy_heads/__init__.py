"""Experiments of the family policy-heads of the ledger."""
