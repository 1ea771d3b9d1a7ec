"""What rollouts and demonstrations say beside success, measure by measure; `evaluate.behavior_metrics` puts them
together."""
