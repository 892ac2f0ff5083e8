"""The stage-1 step against its plain twin, which pads texts to 32 tokens as LAVIS' stage 1 does."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from lavis_lite.bench.loader import with_loaded_images
from lavis_lite.bench.options import FP32, Options
from lavis_lite.bench.sizes import TEXT_WIDTH, caption_lengths, padding_share, random_images, random_rows
from lavis_lite.bench.timing import Case, Side
from lavis_lite.bench.training import OurStep, plain_step
from lavis_lite.bench.twins.stage1 import PlainStage1
from lavis_lite.device import Precision
from lavis_lite.models.blip2.stage1 import Blip2Qformer
from lavis_lite.models.qformer.model import QFormer
from lavis_lite.models.text_tokens import TextTokenizer, TextTokens
from lavis_lite.models.vision.encoder import VisionEncoder


def case(options: Options, device: torch.device, seed: int) -> Case:
    """The comparison.

    Args:
        options: `size`, `batch`, `precision` and `full` are used.
        device: of this rank.
        seed: of this rank's batches.
    """
    precision = options.amp(device)
    fp32 = Precision(device.type, torch.float32)

    @cache
    def model(dtype: torch.dtype) -> Blip2Qformer:
        return build(options, device, dtype)

    def ours(amp: Precision) -> Side:
        return Side(OurStep(model(amp.dtype), model(amp.dtype), device, amp))

    def plain() -> Side:
        return Side(plain_step(PlainStage1(model(precision.dtype), TEXT_WIDTH), device, precision))

    lengths = [caption_lengths(options.images, generator(seed, number), options.full) for number in range(20)]
    return Case(f"stage 1, {options.size}, batch {options.images}",
                {"ours": lambda: ours(precision), "plain": plain, FP32: lambda: ours(fp32)},
                with_loaded_images(lambda number: make_batch(options, seed, number), options), options.images,
                sum(map(sum, lengths)) / len(lengths), sum(map(padding_share, lengths)) / len(lengths))


def build(options: Options, device: torch.device, dtype: torch.dtype) -> Blip2Qformer:
    """The model with random weights; the frozen vision encoder has `dtype`."""
    size = options.dimensions
    torch.manual_seed(0)
    with torch.device(device):
        encoder = VisionEncoder("eva_clip_g", size.image_size, frozen=True,
                                precision="bf16" if dtype == torch.bfloat16 else "fp32", **size.vit)
        model = Blip2Qformer(encoder, QFormer(replace(size.qformer)), TextTokenizer("bert-base-uncased", TEXT_WIDTH))
    return model.train()


def generator(seed: int, number: int) -> torch.Generator:
    """Random numbers of a batch: its lengths come first, so that they can be drawn alone."""
    return torch.Generator().manual_seed(1000 * seed + number)


def make_batch(options: Options, seed: int, number: int) -> dict[str, Any]:
    """Random pixels, texts of real lengths, and the numbers that choose hard negatives."""
    random = generator(seed, number)
    lengths = caption_lengths(options.images, random, options.full)
    vocabulary = options.dimensions.qformer.vocab_size
    rows = [[101, *row[2:], 102] for row in random_rows(lengths, vocabulary, random)]
    return {"image": random_images(options.images, options.dimensions.image_size, random),
            "uniform": torch.rand(options.images, 2, dtype=torch.float64, generator=random),
            "text_input": TextTokens.from_lists(rows, pad=0)}
