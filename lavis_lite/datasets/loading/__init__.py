"""The order of samples, and samples -> batches."""
