"""Data sets packed in tars, read by offset."""
