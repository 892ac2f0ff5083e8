"""Measurements: not part of the package, not timed in tests."""
