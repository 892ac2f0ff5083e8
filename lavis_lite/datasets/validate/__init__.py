"""Looks through a data set before it is trained on: `python -m lavis_lite data check`."""
