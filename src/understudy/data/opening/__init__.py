"""What opens paths: other names of columns, parts of damaged sources, views, shards."""
