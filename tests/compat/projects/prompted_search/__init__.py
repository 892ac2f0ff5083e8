from prompted_search import builder, model, processors, runner, task  # noqa: F401
