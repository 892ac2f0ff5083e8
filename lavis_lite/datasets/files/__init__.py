"""Where a data set's files are, and what their names may be."""
