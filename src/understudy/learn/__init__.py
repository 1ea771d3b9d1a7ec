"""Learning: learners, the training loop, runs and methods."""
