"""Cached features: what a frozen vision encoder computed, kept on disk and read in place of images."""
