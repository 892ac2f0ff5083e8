"""Paths of a data set's files: where they are, what their names may be, memory-mapped tables."""
