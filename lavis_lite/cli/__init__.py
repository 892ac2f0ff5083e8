"""The command line: train, evaluate, fetch, generate, models, zoo. Each module has one `main(argv) -> exit status`."""
