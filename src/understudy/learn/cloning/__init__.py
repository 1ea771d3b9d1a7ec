"""What goes beyond plain cloning: labels, latents and actions of other networks, and further losses."""
