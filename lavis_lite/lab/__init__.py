"""The laboratory: ablations of the papers at mini scale, with seeds, confidence intervals, figures and verdicts."""
