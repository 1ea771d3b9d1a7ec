"""Better than the demonstrations: people taking over, fine-tuning, rewards, continual learning."""
