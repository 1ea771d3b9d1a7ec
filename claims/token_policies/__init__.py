"""Experiments of the family token-policies of the ledger."""
