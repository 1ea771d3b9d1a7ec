"""Extensions of behavior cloning: labels by other networks, latents, and further losses."""
