"""Validation of a data set before training: `python -m lavis_lite data check`."""
