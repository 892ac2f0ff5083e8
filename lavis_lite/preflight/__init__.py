"""What can be known before a run: every error at once, and every file that is missing, with the command that gets it.

Nothing is built, generated or downloaded, and for the package's own parts torch is not imported.
"""

from lavis_lite.preflight.files import fetch_hint, missing
from lavis_lite.preflight.run import check

__all__ = ["check", "fetch_hint", "missing"]
