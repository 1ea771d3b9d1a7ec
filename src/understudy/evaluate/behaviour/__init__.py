"""What rollouts and demonstrations say beside success, measure by measure; `evaluate.beside` puts them together."""
