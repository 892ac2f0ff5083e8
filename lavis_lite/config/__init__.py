"""Configuration: YAML files and overrides in, typed sections out, every error found before anything is built."""
