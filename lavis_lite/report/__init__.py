"""Reports: the page of an evaluation, and two runs side by side. Read from one run folder, without network."""
