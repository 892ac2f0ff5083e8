"""Tracking: where numbers of a run go. Console, `log.jsonl`, TensorBoard, Weights & Biases, the curve picture."""
