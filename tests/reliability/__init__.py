"""A test for every way in which a run, its files or its surroundings can fail."""
