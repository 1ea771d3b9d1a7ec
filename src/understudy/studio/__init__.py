"""Web pages about data sets, and recordings for rerun."""
