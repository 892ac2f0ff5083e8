"""Tasks: what a step computes, what is predicted per batch, and how predictions are scored. No loops, no files."""
