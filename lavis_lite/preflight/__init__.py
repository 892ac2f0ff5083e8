"""Checks before a run: every error at once, and every missing file with the command that fetches it.

Nothing is built, generated or downloaded, and the package's own parts do not import torch.
"""

from lavis_lite.preflight.run import check, fetch_hint, missing

__all__ = ["check", "fetch_hint", "missing"]
