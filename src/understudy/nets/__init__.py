"""What computes: encoders of observations and trunks. None of them knows what its output means."""
