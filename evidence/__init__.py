"""What was shown with understudy: systems, family tables, advice and published numbers. Run it by `python -m evidence`."""
