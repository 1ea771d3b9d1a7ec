"""Evidence about understudy: systems, family tables, advice and published numbers. `python -m evidence` runs it."""
