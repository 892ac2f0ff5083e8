"""Dialogue about videos with GPT-2, in the shape of LAVIS' tutorials: a data set, processors, a model and a task."""

from avsd_tutorial import builder, model, processors, task  # noqa: F401
