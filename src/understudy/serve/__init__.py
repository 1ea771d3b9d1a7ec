"""Serves a policy: a websocket server that openpi clients can use, and clients without PyTorch."""
