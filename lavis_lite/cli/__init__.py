"""The command line: train, evaluate, fetch, models. Each module has one `main(argv) -> exit status`."""
