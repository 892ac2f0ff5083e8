"""`python -m lavis_lite data capfilt`: captions for the images of a data set, written and filtered by models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lavis_lite.cli.console import add_config, command_parser, new_folder
from lavis_lite.cli.sections import dataset_section, table_split, with_processors
from lavis_lite.errors import ConfigError

if TYPE_CHECKING:
    from lavis_lite.capfilt.captioner import Sampling, ZooCaptioner
    from lavis_lite.capfilt.ranker import Ranker


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    arguments = command_parser("data capfilt", "Write captions of every image by nucleus sampling, rank them and the "
                               "image's own by similarity, keep the best (BLIP-2 paper, section 3.4). If it was "
                               "stopped, the same command continues. Under torchrun or srun the processes share the "
                               "images.", ["--dataset coco_caption --out captions --ranker blip2:mini"])
    arguments.add_argument("--dataset", metavar="NAME", help="a data set of the package, or one of those in --cfg-path")
    add_config(arguments)
    arguments.add_argument("--split", default="train")
    arguments.add_argument("--out", required=True, type=new_folder, metavar="DIR")
    _add_models(arguments)
    arguments.add_argument("--seed", type=int, default=42)
    arguments.add_argument("--batch-size", type=int, default=16, metavar="N", help="images per forward pass")
    arguments.add_argument("--images-per-part", type=int, default=1000, metavar="N",
                           help="images that are repeated after a kill")
    arguments.add_argument("--samples-per-shard", type=int, default=10_000, metavar="N", help="images per tar")
    arguments.add_argument("--skip-bad", action="store_true", help="skip unreadable images, and list them")
    arguments.add_argument("--max-bad-fraction", type=float, default=0.001, metavar="SHARE")
    arguments.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:1")
    arguments.add_argument("--dtype", help="of the captioner: fp32 | bf16 | fp16")
    return arguments


def _add_models(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument("--captioner", default="blip2_opt", metavar="ARCH")
    arguments.add_argument("--type", default="mini", metavar="MODEL_TYPE", help="see `python -m lavis_lite zoo`")
    arguments.add_argument("--checkpoint", metavar="PATH", help="the captioner's weights, instead of the type's own")
    arguments.add_argument("--prompt", help="beginning of the captions, instead of the model's own")
    arguments.add_argument("--k", type=int, default=10, help="captions written for each image")
    arguments.add_argument("--keep", type=int, default=2, help="captions kept for each image")
    arguments.add_argument("--top-p", type=float, default=0.9, help="share of the probability that is drawn from")
    arguments.add_argument("--temperature", type=float, default=1.0)
    arguments.add_argument("--max-new-tokens", type=int, default=30)
    ranker = arguments.add_mutually_exclusive_group(required=True)
    ranker.add_argument("--clip", metavar="NAME", help="a CLIP model of transformers, by folder or hub name; the paper "
                                                       "uses openai/clip-vit-large-patch14")
    ranker.add_argument("--ranker", metavar="blip2:TYPE", help="a stage-1 model instead of CLIP, such as blip2:mini")
    arguments.add_argument("--ranker-checkpoint", metavar="PATH", help="weights of --ranker")


def main(argv: Sequence[str]) -> int:
    """Do this process' share of the work.

    Raises:
        LavisLiteError: no such data set, split or model, impossible settings, or images that cannot be used.
    """
    chosen = parser().parse_args(list(argv))
    for name in ("k", "keep", "batch_size", "images_per_part", "samples_per_shard"):
        if getattr(chosen, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1.")
    name, section, _ = dataset_section(chosen.dataset, chosen.cfg_path, chosen.options)
    dataset = table_split(name, with_processors(section), chosen.split)
    from lavis_lite.capfilt.job import SHARDS, Job, run_job
    from lavis_lite.device import pick_device
    from lavis_lite.process.launch import launch_from_environment

    launch = launch_from_environment()
    device = pick_device(chosen.device, launch.local_rank, "--device")
    job = Job(dataset.table, dataset.folder, getattr(dataset, "space", "") or name, load_captioner(chosen, device),
              load_ranker(chosen, device), chosen.out.absolute(), chosen.keep, chosen.seed, chosen.images_per_part,
              chosen.batch_size, chosen.samples_per_shard, chosen.skip_bad, chosen.max_bad_fraction)
    index = run_job(job, launch.rank, launch.world_size)
    if index is None:
        print(f"[rank {launch.rank}] done; the last process to finish packs {job.out / SHARDS}")
        return 0
    print(f"{index.samples} images in {len(index.shards)} shards: {job.out / SHARDS}")
    print(f"to train on them: --options datasets.{name}.build_info.annotations.{chosen.split}.storage="
          f"{job.out / SHARDS} datasets.{name}.captions=random")
    return 0


def sampling(chosen: argparse.Namespace) -> Sampling:
    """How captions are sampled."""
    from lavis_lite.capfilt.captioner import Sampling

    return Sampling(chosen.k, chosen.top_p, chosen.temperature, chosen.max_new_tokens, prompt=chosen.prompt)


def load_captioner(chosen: argparse.Namespace, device: Any) -> ZooCaptioner:
    """The model that writes.

    Raises:
        LavisLiteError: the model cannot be loaded, or cannot write several captions of an image.
    """
    from lavis_lite.capfilt.captioner import ZooCaptioner
    from lavis_lite.zoo import load_model_and_preprocess

    model, images, _ = load_model_and_preprocess(chosen.captioner, chosen.type, True, device, dtype=chosen.dtype,
                                                 checkpoint=chosen.checkpoint)
    name = " ".join(filter(None, (chosen.captioner, chosen.type, chosen.checkpoint, chosen.dtype)))
    return ZooCaptioner(name, model, images["eval"], sampling(chosen))


def load_ranker(chosen: argparse.Namespace, device: Any) -> Ranker:
    """The model that ranks: CLIP, or the stage-1 model of --ranker.

    Raises:
        LavisLiteError: there is no such model.
    """
    from lavis_lite.capfilt.ranker import QFormerRanker, load_clip
    from lavis_lite.zoo import load_model_and_preprocess

    if chosen.clip is not None:
        return load_clip(chosen.clip, device)
    arch, _, model_type = chosen.ranker.partition(":")
    if arch != "blip2" or not model_type:
        raise ConfigError(f"--ranker {chosen.ranker}: write blip2:TYPE, for example blip2:mini; or name a CLIP model "
                          "with --clip.")
    checkpoint = chosen.ranker_checkpoint
    model, images, texts = load_model_and_preprocess("blip2_image_text_matching", model_type, True, device,
                                                     checkpoint=checkpoint)
    return QFormerRanker(" ".join(filter(None, (chosen.ranker, checkpoint))), model, images["eval"], texts["eval"])
