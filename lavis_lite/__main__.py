"""`python -m lavis_lite`."""

from lavis_lite.cli.main import entry

entry()
