"""Configuration: YAML files and overrides -> typed sections, with every error found before anything is built."""
