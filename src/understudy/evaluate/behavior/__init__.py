"""Behavior metrics, one module each; `evaluate.behavior_metrics` combines them."""
