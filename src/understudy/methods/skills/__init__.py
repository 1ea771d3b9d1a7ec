"""Latent skills: they learn pieces of behavior and a policy that chooses among them."""
