"""Experiments of the family interactive-deployment of the ledger."""
