"""One file a format. `open_dataset` recognises a source by what is in it."""
