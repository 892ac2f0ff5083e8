"""Scores: pure functions over predictions and references. They read no model and no run."""
