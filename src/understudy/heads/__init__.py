"""Policy heads (losses and samplers for the output of a network), one file each."""
