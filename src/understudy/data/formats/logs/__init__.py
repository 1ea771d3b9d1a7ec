"""Readers of MCAP files and ROS bags: topics, messages, and their mapping to columns."""
