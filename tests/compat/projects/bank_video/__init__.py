"""Video questions with a memory bank: a subclass of Blip2VicunaInstruct that reads frames one after another."""

from bank_video import builder, model, task  # noqa: F401
