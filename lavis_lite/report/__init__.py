"""Pages a person can look through, and two runs side by side; files from one run folder, no network."""
