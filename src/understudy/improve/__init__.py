"""Methods that go beyond the demonstrations: data collection in rounds, intervention by people, restarts, and continual
learning.
"""
