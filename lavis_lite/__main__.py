"""`python -m lavis_lite`: the command line of the package."""

from lavis_lite.cli.main import entry

entry()
