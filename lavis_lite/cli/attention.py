"""`generate --attention`: a PNG for each picture, with what the model sees where it writes each word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from lavis_lite.errors import ConfigError
from lavis_lite.io import atomic
from lavis_lite.io.files import why_not_writable
from lavis_lite.registry import lacking, need, registry


def targets(name: str | None, pictures: Sequence[Path], arch: str) -> dict[Path, Path]:
    """Picture -> the file of its attention; empty without a name. Makes the folder of several.

    Args:
        name: of a .png file for one picture, or of a folder.
        pictures: that are read.
        arch: of the model.

    Raises:
        ConfigError: one file for several pictures, a path that is one of them or cannot be written. Also: a model
            that does not show where it looks.
    """
    if name is None:
        return {}
    from lavis_lite.models.protocols import Looker

    if lacking(registry.get_model_class(arch), Looker):
        raise ConfigError(f"--attention: {arch} does not show where it looks; try blip2_opt.")
    path = Path(name).expanduser()
    is_file = path.suffix.lower() == ".png"
    if is_file and len(pictures) > 1:
        raise ConfigError(f"--attention: {name} is one file for {len(pictures)} pictures; name a folder, such as "
                          f"{path.with_suffix('')}.")
    if reason := why_not_writable(path, folder=not is_file):
        raise ConfigError(f"--attention {name} cannot be written ({reason}); name a .png file or a folder.")
    found = {pictures[0]: path} if is_file else _in_folder(path, pictures)
    if own := {picture.resolve() for picture in pictures} & {target.resolve() for target in found.values()}:
        raise ConfigError(f"--attention {name} would replace the picture {min(own)}; name another file or folder.")
    (path.parent if is_file else path).mkdir(parents=True, exist_ok=True)
    return found


def _in_folder(folder: Path, pictures: Sequence[Path]) -> dict[Path, Path]:
    """A file for each picture, with a number in its name if two pictures have the same name."""
    digits = len(str(len(pictures)))
    several = len({picture.stem for picture in pictures}) < len(pictures)
    return {picture: folder / f"{f'{number:0{digits}}_' if several else ''}{picture.stem}.png"
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
