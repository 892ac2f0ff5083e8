"""The stage-2 step against its plain twin and transformers' model; all of them pad to the longest text of the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lavis_lite.bench.loader import with_loaded_images
from lavis_lite.bench.options import FP32, Options
from lavis_lite.bench.sizes import TEXT_WIDTH, Size, caption_lengths, padding_share, random_images, random_rows
from lavis_lite.bench.timing import Case, Side
from lavis_lite.bench.training import OurStep, plain_step
from lavis_lite.bench.twins.stage2 import PlainStage2, instructions
from lavis_lite.bench.twins.transformers_stage2 import HFStage2
from lavis_lite.bench.twins.transformers_stage2 import build as build_transformers
from lavis_lite.device import Precision
from lavis_lite.models.blip2.llm import Blip2LLM
from lavis_lite.models.language import build_language_model
from lavis_lite.models.qformer.model import QFormer
from lavis_lite.models.text_tokens import TextTokenizer
from lavis_lite.models.vision.encoder import VisionEncoder


class IdsOnly:
    """A tokenizer for texts that come as ids."""

    def __init__(self, pad: int = 1, end: int | None = None) -> None:
        self.pad_token_id, self.eos_token_id = pad, end

    def add_special_tokens(self, tokens: Mapping[str, str]) -> int:
        """Nothing to add."""
        return 0


class LossFromIds(nn.Module):
    """`Blip2LLM.forward` without tokenisation.

    Args:
        model: a stage-2 model.
    """

    def __init__(self, model: Blip2LLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, samples: Mapping[str, Any]) -> Tensor:
        """Mean loss of the learned tokens.

        Args:
            samples: image float[B,3,H,W]; `before` and `after`, B rows of ids that are read and that are learned.
        """
        soft_prompt = self.model.embed_tokens(samples["image"], instructions(self.model, samples["before"]), None)
        return self.model.language_model.row_losses(soft_prompt, samples["before"], samples["after"]).mean()


def case(options: Options, device: torch.device, seed: int) -> Case:
    """The comparison.

    Args:
        options: `size`, `llm`, `batch`, `precision`, `full` and `instruct` are used.
        device: of this rank.
        seed: of this rank's batches.
    """
    precision = options.amp(device)
    fp32 = Precision(device.type, torch.float32)

    @cache
    def model(dtype: torch.dtype) -> Blip2LLM:
        return build(options.dimensions, options.llm, device, dtype, options.instruct)

    def ours(amp: Precision) -> Side:
        return Side(OurStep(LossFromIds(model(amp.dtype)), model(amp.dtype), device, amp))

    def plain() -> Side:
        return Side(plain_step(PlainStage2(model(precision.dtype)).train(), device, precision))

    def transformers() -> Side:
        return Side(plain_step(theirs(options.dimensions, options.llm, device, precision.dtype), device, precision))

    rows = [make_batch(options, seed, number, with_image=False)["after"] for number in range(20)]
    lengths = [[len(row) for row in batch] for batch in rows]
    sides = {"ours": lambda: ours(precision), "plain": plain, "transformers": transformers, FP32: lambda: ours(fp32)}
    if options.instruct:
        del sides["transformers"]  # its model of stage 2 reads no instructions
    return Case(f"{'InstructBLIP' if options.instruct else 'stage 2'}, {options.llm}, {options.size}, batch "
                f"{options.images}", sides,
                with_loaded_images(lambda number: make_batch(options, seed, number), options), options.images,
                sum(map(sum, lengths)) / len(lengths), sum(map(padding_share, lengths)) / len(lengths))


def build(size: Size, llm: str, device: torch.device, dtype: torch.dtype, instruct: bool = False) -> Blip2LLM:
    """The model with random weights; its frozen parts have `dtype`, and its Q-Former reads text if `instruct`."""
    torch.manual_seed(0)
    precision: Any = "bf16" if dtype == torch.bfloat16 else "fp32"
    with torch.device(device):
        encoder = VisionEncoder("eva_clip_g", size.image_size, frozen=True, precision=precision, **size.vit)
        qformer = QFormer(replace(size.qformer, with_text=instruct, with_lm_head=False))
        language_model = build_language_model("", sizes=size.llms[llm], tokenizer=IdsOnly(), precision=precision)
        shrink_head(language_model.model)
        model = Blip2LLM(encoder, qformer, TextTokenizer("bert-base-uncased"), language_model)
    return model.train()


def theirs(size: Size, llm: str, device: torch.device, dtype: torch.dtype) -> HFStage2:
    """transformers' model of the same sizes."""
    vit, qformer = size.vit, size.qformer
    torch.manual_seed(0)
    vision = {"hidden_size": vit["width"], "intermediate_size": int(vit["width"] * vit["mlp_ratio"]),
              "num_hidden_layers": vit["depth"], "num_attention_heads": vit["heads"],
              "image_size": size.image_size, "patch_size": 14, "layer_norm_eps": 1e-6}
    reader = {"vocab_size": qformer.vocab_size, "hidden_size": qformer.hidden_size,
              "num_hidden_layers": qformer.num_layers, "num_attention_heads": qformer.num_heads,
              "intermediate_size": qformer.intermediate_size, "encoder_hidden_size": qformer.vision_width,
              "cross_attention_frequency": 2}
    with torch.device(device):
        model = build_transformers(vision, reader, size.llms[llm], qformer.num_queries,
                                   size.llms[llm]["vocab_size"] - 1)
    shrink_head(model.language_model)
    for part in (model.language_model, model.vision_model):
        part.to(dtype)
    model.vision_model.post_layernorm.float()  # it is trained
    return HFStage2(model).train()


def shrink_head(model: Any) -> None:
    """Give T5's output layer weights of FlanT5's size.

    With a standard deviation of 1, as transformers draws them, the backward pass is several times slower.
    """
    if model.config.model_type == "t5":
        nn.init.normal_(model.lm_head.weight, std=model.config.d_model ** -0.5)


def make_batch(options: Options, seed: int, number: int, with_image: bool = True) -> dict[str, Any]:
    """Random pixels and texts of real lengths.

    OPT learns the text after a begin token, which is learned too, as LAVIS does where there is no prompt. T5 reads one
    text and learns another. InstructBLIP's prompts have 5 to 32 tokens, each length as likely as another.
    """
    random = torch.Generator().manual_seed(1000 * seed + number)
    sizes, count, is_opt = options.dimensions.llms[options.llm], options.images, options.llm == "opt"

    def rows(lengths: list[int] | None = None) -> list[list[int]]:
        lengths = caption_lengths(count, random, options.full) if lengths is None else lengths
        return random_rows(lengths, min(30000, sizes["vocab_size"]), random)

    before: list[list[int]] = [[]] * count if is_opt else rows()
    if options.instruct:
        before = rows(torch.randint(5, TEXT_WIDTH + 1, (count,), generator=random).tolist())
    after = [[2, *row[1:]] if is_opt else row for row in rows()]
    batch: dict[str, Any] = {"before": before, "after": after}
    if with_image:
        batch["image"] = random_images(options.images, options.dimensions.image_size, random)
    return batch
