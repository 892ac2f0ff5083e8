"""The process: its launcher, exit codes and signals, child processes, system limits and locks."""
