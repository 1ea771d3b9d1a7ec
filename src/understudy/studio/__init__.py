"""The web page and its small server."""
