"""Pretrained encoders: they train an encoder first and a policy on top of it."""
