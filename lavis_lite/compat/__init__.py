"""Adapters for code that was written for other packages. Nothing else in the package imports them."""
