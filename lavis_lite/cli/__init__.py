"""The command line. Each module is one command with `main(argv) -> exit status`."""
