"""Experiments of the family data-curation of the ledger."""
