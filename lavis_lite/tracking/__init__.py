"""Where a run's records go: the console, log.jsonl, TensorBoard, W&B and the picture of its curves."""
