"""Long chunks: they predict long chunks and average where they overlap."""
