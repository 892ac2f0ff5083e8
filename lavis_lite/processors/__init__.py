"""Processors: one raw image, video or text -> what a model takes. All randomness comes from the caller's generator."""
