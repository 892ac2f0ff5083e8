"""YAML and overrides in, typed sections out: which layer set each value, and every error of keys and types."""
