"""Experiments of the family goals-from-play: goals that are named after the data were recorded."""
