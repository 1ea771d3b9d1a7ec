"""Policies that are told which return to reach, and learn from episodes of any quality."""
