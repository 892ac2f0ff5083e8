"""Connectors: from the features of an encoder to vectors that a language model reads."""
