"""Builders: a data set's section of the configuration -> one data set per split."""
