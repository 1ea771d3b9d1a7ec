"""MCAP files and bags of ROS: topics, messages, and their mapping to columns."""
