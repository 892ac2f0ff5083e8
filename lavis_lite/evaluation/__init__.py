"""Evaluation: scores a split, shows progress, resumes after a stop, and writes the result files."""
