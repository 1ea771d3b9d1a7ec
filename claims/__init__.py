"""Published statements as experiments, by the families of the ledger, with their texts and records."""
