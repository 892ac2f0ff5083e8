"""The mini world: generated scenes with captions and questions, written to disk in the layouts of real data sets."""
