"""Training: the one step loop, with optimizer, schedule, precision, checkpoints and signals."""
