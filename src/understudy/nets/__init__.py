"""Networks of policies: encoders of observations, and trunks. Heads give their output a meaning."""
