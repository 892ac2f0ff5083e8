"""Shards: data sets packed in tar files, read by offset through an index."""
