"""From a data set's section of the configuration to its data sets."""
