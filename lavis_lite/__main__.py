"""`python -m lavis_lite`."""

import sys

from lavis_lite.cli.main import main

sys.exit(main())
