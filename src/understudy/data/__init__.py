"""Data sets of demonstrations: episodes, windows over them, formats, views, augmentations and normalization."""
