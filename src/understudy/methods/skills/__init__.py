"""Latent skills: an autoencoder learns them from pieces of episodes, and a high-level policy chooses among them."""
