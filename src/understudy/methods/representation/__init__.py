"""Pretraining: an encoder is trained first, then a policy learns on it."""
