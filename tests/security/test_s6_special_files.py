"""S6: pipes and devices in place of files are refused in words; reading one would never end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lavis_lite.checkpoints.reading import read_tensors
from lavis_lite.config.compose import compose
from lavis_lite.datasets.annotations.rows import Field, file_name, read_table
from lavis_lite.datasets.files.archives import unpack
from lavis_lite.datasets.media.images import ImageFolder
from lavis_lite.datasets.shards.scan import index_folder
from lavis_lite.errors import LavisLiteError
from lavis_lite.preflight import check, missing
from tests.reliability.faulty import write_config


def annotations(path: Path) -> None:
    if path.suffix in (".parquet", ".arrow"):
        pytest.importorskip("pyarrow")
    read_table([path], [Field("image", file_name)])


def image(path: Path) -> None:
    ImageFolder(path.parent).load(path.name)


READERS: dict[str, Callable[[Path], object]] = {
    ".json": annotations, ".jsonl": annotations, ".csv": annotations, ".parquet": annotations, ".arrow": annotations,
    ".tar": lambda path: index_folder(path.parent), ".zip": lambda path: unpack(path, path.parent / "out"),
    ".png": image, ".safetensors": read_tensors, ".pth": read_tensors}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("suffix", READERS)
def test_s6_a_pipe_is_no_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    os.mkfifo(path)
    with pytest.raises(LavisLiteError, match="not a regular file") as caught:
        READERS[suffix](path)
    assert str(path) in str(caught.value)


def test_s6_weights_that_are_a_pipe_are_refused_before_any_work(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pth")
    recipe = Path(__file__).parents[2] / "projects/blip2/stage1.yaml"
    with pytest.raises(LavisLiteError, match="x.pth: is not a regular file"):
        missing(compose(recipe, ["model.load_pretrained=true", f"model.pretrained={tmp_path / 'x.pth'}"]).config)


@pytest.mark.parametrize("target", ["out", "nowhere"])
def test_s6_a_link_that_leads_nowhere_is_no_output_folder(target: str, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / target)
    (error,) = check(compose(write_config(tmp_path)))
    assert "run.output_dir" in error and "a symbolic link that leads nowhere" in error


def test_s6_a_hundred_thousand_workers_are_a_typing_error(tmp_path: Path) -> None:
    (error,) = check(compose(write_config(tmp_path), ["run.num_workers=100000"]))
    assert "run.num_workers" in error and "at most 1000" in error
