"""Evaluation of a split: the evaluator, its progress, what a stopped one resumes from, and the result files."""
