"""Annotation files -> tables of checked rows."""
