"""`python -m lavis_lite`."""

from lavis_lite.cli.main import main
from lavis_lite.exits import leave

leave(main())
