"""Classes written for LAVIS run here: importing this package makes `lavis` importable.

    imports: [lavis_lite.compat.lavis, my_project]      in a YAML file, before the project that imports lavis
    import lavis_lite.compat.lavis                      in Python

`lavis.common.registry`, `lavis.models.blip2_models.blip2` and so on then hold classes of this package: what subclasses
them registers, trains, resumes and is evaluated like any other part. `names` has the table of what there is;
docs/guide/porting_a_lavis_project.md shows two projects.
"""

from __future__ import annotations

from lavis_lite.compat.lavis import finder
from lavis_lite.compat.lavis.sizes import sizes
from lavis_lite.torchvision_shim import ensure_torchvision

__all__ = ["sizes"]

finder.install()
ensure_torchvision()  # such projects import torchvision, timm and transformers themselves
