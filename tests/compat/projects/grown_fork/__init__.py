"""A copy of LAVIS that was changed in place: its classes keep LAVIS' names, and name YAMLs that only LAVIS has."""

import os

from lavis.common.registry import registry

from grown_fork import captions, model, search  # noqa: F401

registry.mapping["paths"]["library_root"] = os.path.dirname(os.path.abspath(__file__))
