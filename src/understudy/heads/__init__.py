"""Policy heads, one file each: losses and samplers for the output of a network."""
