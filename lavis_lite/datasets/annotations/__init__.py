"""Annotations: JSON, CSV and other files -> tables of checked rows."""
