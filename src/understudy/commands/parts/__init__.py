"""What commands share and are made of."""
