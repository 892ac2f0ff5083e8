"""Optimizers by name: building one from a run's settings, and those that torch does not have in this form."""
