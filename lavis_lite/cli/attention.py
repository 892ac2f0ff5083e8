"""`generate --attention`: a PNG for each picture, with what the model sees where it writes each word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lavis_lite.errors import ConfigError
from lavis_lite.io import atomic
from lavis_lite.registry import lacking, need, registry


def targets(name: str | None, pictures: Sequence[Path], arch: str) -> dict[Path, Path]:
    """Picture -> the file of its attention; empty without a name. Makes the folder of several.

    Args:
        name: of a .png file for one picture, or of a folder.
        pictures: that are read.
        arch: of the model.

    Raises:
        ConfigError: one file for several pictures, or a model that does not show where it looks.
    """
    if name is None:
        return {}
    from lavis_lite.models.protocols import Looker

    if lacking(registry.get_model_class(arch), Looker):
        raise ConfigError(f"--attention: {arch} does not show where it looks; try blip2_opt.")
    path = Path(name).expanduser()
    if path.suffix.lower() == ".png":
        if len(pictures) > 1:
            raise ConfigError(f"--attention: {name} is one file for {len(pictures)} pictures; name a folder, such as "
                              f"{path.with_suffix('')}.")
        path.parent.mkdir(parents=True, exist_ok=True)
        return {pictures[0]: path}
    path.mkdir(parents=True, exist_ok=True)
    digits = len(str(len(pictures)))
    several = len({picture.stem for picture in pictures}) < len(pictures)
    return {picture: path / f"{f'{number:0{digits}}_' if several else ''}{picture.stem}.png"
            for number, picture in enumerate(pictures)}


def draw(model: object, processor: Any, picture: Image.Image, samples: dict[str, Any], target: Path) -> None:
    """Write the sheet of one picture.

    Args:
        model: of `generate`.
        processor: of its images.
        picture: the original.
        samples: one sample with the text that was written, as `attention` takes it.
        target: the file.
    """
    from lavis_lite.models.attention import shown
    from lavis_lite.models.protocols import Looker
    from lavis_lite.report.overlay import as_seen, sheet

    [found] = shown(need(model, Looker, "--attention"), samples)
    with atomic.replaced(target) as temporary:
        sheet(as_seen(processor, picture), found.words, found.maps()).save(temporary, "PNG")
