"""`python -m lavis_lite data cache-features`: save the frozen vision encoder's outputs for the training images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lavis_lite.cli.console import add_config, command_parser, new_folder, raise_errors
from lavis_lite.config.compose import compose
from lavis_lite.config.schema import Config
from lavis_lite.datasets.media.images import ImageFolder
from lavis_lite.datasets.protocols import ImageTable
from lavis_lite.errors import ConfigError, DataError
from lavis_lite.preflight import check, missing
from lavis_lite.registry import registry


def main(argv: Sequence[str]) -> int:
    """Write the features of every data set of a run that has training splits.

    Under torchrun or srun the processes share the files.

    Raises:
        LavisLiteError: errors in the configuration, a processor that changes images at random, an encoder that trains,
            or images that cannot be used.
    """
    arguments = command_parser("data cache-features", "Run the frozen vision encoder once over the training images of "
                               "a run and save its outputs. If it was stopped, the same command continues.",
                               ["--cfg-path projects/blip2/stage1.yaml"])
    add_config(arguments, required=True)
    arguments.add_argument("--out", type=new_folder, metavar="DIR",
                           help="by default `features` beside the images or in the folder of the shards")
    arguments.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16")
    arguments.add_argument("--images-per-file", type=int, default=1000, metavar="N")
    chosen = arguments.parse_args(list(argv))
    if chosen.images_per_file < 1:
        raise ConfigError("--images-per-file must be at least 1.")
    composition = compose(chosen.cfg_path, chosen.options)
    raise_errors(chosen.cfg_path, check(composition), missing(composition.config))
    write_all(composition.config, chosen.out, chosen.dtype, chosen.images_per_file)
    return 0


def write_all(config: Config, out: Path | None, dtype: str, per_file: int) -> None:
    """The features of every data set with training splits."""
    from lavis_lite import engine
    from lavis_lite.checkpoints import weights
    from lavis_lite.datasets.features.writer import FeatureJob, image_names, write_features
    from lavis_lite.device import pick_device
    from lavis_lite.process.launch import launch_from_environment

    launch, run = launch_from_environment(), config.run
    device = pick_device(run.device, launch.local_rank)
    sets = {name: _training_splits(config, name) for name in config.datasets}
    model = engine.build_model(config)
    encoder = weights.encoder_identity(model)
    see: Any = model.vision_encoder
    model.to(device)
    for name, datasets in sets.items():
        if not datasets:
            continue
        vis, processor = _processor(config, name)
        job = FeatureJob(
            images=image_names([dataset.table for dataset in datasets]), folder=datasets[0].folder, vis=vis,
            encode=lambda image: see(image.to(device)),
            facts={"encoder": encoder, "processor": processor}, out=_folder(out, name, datasets[0].folder), dtype=dtype,
            per_file=per_file, batch_size=run.batch_size_train, workers=run.num_workers,
            skip_bad=run.on_bad_sample == "skip", start_method=run.worker_start_method)
        if write_features(job, launch.rank, launch.world_size):
            print(f"features of {len(job.images)} images: {job.out}")
            print(f"to train on them: --options datasets.{name}.features={job.out}")
        else:
            print(f"[rank {launch.rank}] done; the last process to finish completes {job.out}")


def _training_splits(config: Config, name: str) -> list[Any]:
    section = dataclasses.replace(config.datasets[name])
    if "features" in section:
        section = section.replaced(features=None)
    builder = registry.get_builder_class(section.builder or name)(name, section)
    splits = [split for split in config.run.train_splits if split in builder.splits()]
    built: list[Any] = [builder.build(split, training=True) for split in splits]
    for dataset in built:
        if not isinstance(dataset, ImageTable):
            raise DataError(f"datasets.{name}: data sets of this builder have no table of rows and folder of images.")
    folders = {str(dataset.folder.root): dataset.folder for dataset in built}
    if len(folders) > 1 or len(built) > 1 and any(folder.cells for folder in folders.values()):
        raise DataError(f"datasets.{name}: the splits {', '.join(config.run.train_splits)} have separate images "
                        f"({', '.join(folders)}), and an image of one may be called as one of another. Set "
                        "build_info.images.storage to one folder, or make each split a separate data set.")
    return built


def _processor(config: Config, name: str) -> tuple[Any, dict[str, Any]]:
    from lavis_lite.datasets.features.cache import refuse_random

    section = config.datasets[name]
    vis = registry.get_builder_class(section.builder or name)(name, section).processor("vis_processor", training=True)
    processor = dict(section.vis_processor.train or {})
    refuse_random(vis, f"datasets.{name}", processor)
    return vis, processor


def _folder(out: Path | None, name: str, folder: ImageFolder) -> Path:
    """The output folder: beside the images, or in the folder of the shards' index."""
    from lavis_lite.datasets.shards.dataset import ShardImages

    if out is not None:
        return (out / name).absolute()
    root = Path(folder.root).absolute()
    return (root if isinstance(folder, ShardImages) else root.parent) / "features" / name
