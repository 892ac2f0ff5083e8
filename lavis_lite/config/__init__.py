"""YAML and overrides in, typed sections out: schema, compose (layers with provenance), preflight (every fault)."""
