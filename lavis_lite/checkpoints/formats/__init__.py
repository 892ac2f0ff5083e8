"""Checkpoint formats: key maps and configurations of LAVIS, transformers, timm and BERT."""
