"""Opening data sets: columns with other names, damaged sources, views and shards."""
