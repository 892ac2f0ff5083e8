"""Loading: the global order of samples, and samples -> batches."""
