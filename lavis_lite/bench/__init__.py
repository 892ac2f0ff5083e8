"""Measures training steps, generation, re-ranking and loading, in turns with plain twins and transformers."""
