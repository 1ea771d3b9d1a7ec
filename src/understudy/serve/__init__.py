"""Serving a policy: a websocket server that openpi clients can use, and clients. The clients do not import PyTorch."""
