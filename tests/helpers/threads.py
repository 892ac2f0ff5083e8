"""How many threads torch has in every process of a test: one, or what run_scripts/test_matrix.sh asks for."""

from __future__ import annotations

import os

THREADS = int(os.environ.get("LAVIS_LITE_TEST_THREADS", "1"))
