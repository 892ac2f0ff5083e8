"""Captions and answers by beam search, against transformers' generate from the same embeddings with the same weights.

Captions: as LAVIS generates COCO's (5 beams, 8 to 30 tokens) after a soft prompt and 4 tokens. Answers: 5 questions of
8 to 16 tokens on each image, 5 beams, at most 10 tokens; soft prompts are read once per image. The ids of all sides are
compared before anything is timed.

Weights are random, except at size mini, which uses the packaged models. Random models hardly ever end a text. So the
end token's row of the output layer is wider than others and leans towards the mean hidden state. Texts then end at
different lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from lavis_lite.bench.options import Options
from lavis_lite.bench.sizes import random_rows
from lavis_lite.bench.stage2 import IdsOnly
from lavis_lite.bench.timing import Case, Side
from lavis_lite.errors import LavisLiteError
from lavis_lite.models.language import GenerationConfig, LanguageModel, build_language_model

QUERIES, QUESTIONS = 32, 5
CAPTIONS = GenerationConfig(max_new_tokens=30, min_new_tokens=7, num_beams=5)
ANSWERS = GenerationConfig(max_new_tokens=10, min_new_tokens=0, num_beams=5, length_penalty=0.0)
SPREAD = 3.0
"""standard deviation of the logits: the likeliest of so many words then has a probability of 0.1 or so"""
END_LOGIT = 14.0
"""mean logit of the end token; the larger, the shorter the texts"""


@dataclass(frozen=True)
class Work:
    """What one turn generates.

    Attributes:
        model: the language model.
        soft: float[U,Q,D], soft prompts of U images.
        prompts: B rows of ids.
        options: of decoding.
        index: the image of each prompt; None: prompt b goes with image b.
    """

    model: LanguageModel
    soft: Tensor
    prompts: list[list[int]]
    options: GenerationConfig
    index: list[int] | None = None

    @torch.no_grad()
    def ours(self, batch: Any = None) -> list[list[int]]:
        """Ids by this package."""
        return self.model.generate_ids(self.soft, self.prompts, self.options, self.index)

    @torch.no_grad()
    def theirs(self, batch: Any = None) -> list[list[int]]:
        """Ids by transformers' generate."""
        soft = self.soft if self.index is None else self.soft[self.index]
        embeds, mask = self.model.prefix_embeds(soft, self.prompts)
        end, options = self.model.tokenizer.end, self.options
        rows = self.model.model.generate(
            inputs_embeds=embeds, attention_mask=mask.long(), do_sample=False, max_new_tokens=options.max_new_tokens,
            min_new_tokens=options.min_new_tokens, num_beams=options.num_beams, length_penalty=options.length_penalty,
            eos_token_id=end, pad_token_id=self.model.pad).tolist()
        rows = [row[1:] for row in rows] if self.model.model.config.is_encoder_decoder else rows
        return [row[:row.index(end)] if end in row else row for row in rows]


def case(options: Options, device: torch.device, seed: int) -> list[Case]:
    """The comparisons: captions, and answers unless the size is mini."""
    if options.size == "mini":
        return [_compared(f"captions, packaged {options.llm}", options.images, lambda: packaged(options, device))]
    model = cache(partial(build, options.dimensions.llms[options.llm], device))
    answered = max(options.images // 4, 1)
    label = f"{options.llm}, {options.size}, batch"
    return [_compared(f"captions, {label} {options.images}", options.images, lambda: captions(model(), options.images)),
            _compared(f"answers, {label} {answered} x {QUESTIONS}", answered, lambda: answers(model(), answered))]


def _compared(name: str, images: int, make: Callable[[], Work]) -> Case:
    work = cache(make)
    found = Case(name, {"ours": lambda: Side(work().ours), "transformers": lambda: Side(work().theirs)},
                 lambda number: None, images)

    def check(sides: Mapping[str, Side]) -> None:
        texts: dict[str, Any] = {side: sides[side].turn(None) for side in sides}
        found.tokens = sum(map(len, texts["ours"]))
        for peer, rows in texts.items():
            different = sum(one != other for one, other in zip(texts["ours"], rows, strict=True))
            if different:
                raise LavisLiteError(f"{name}: {different} of {len(rows)} texts of {peer} differ from this package's; "
                                     "nothing was timed.")

    found.check = check
    return found


def captions(model: LanguageModel, images: int) -> Work:
    """A caption per image."""
    return Work(model, soft_prompts(model, images), _prompts(model, [4] * images), CAPTIONS)


def answers(model: LanguageModel, images: int) -> Work:
    """QUESTIONS answers per image."""
    index = [image for image in range(images) for _ in range(QUESTIONS)]
    lengths = torch.randint(8, 17, (len(index),), generator=torch.Generator().manual_seed(3)).tolist()
    return Work(model, soft_prompts(model, images), _prompts(model, lengths), ANSWERS, index)


def packaged(options: Options, device: torch.device) -> Work:
    """Captions of generated pictures by a packaged model, from its soft prompts on."""
    from PIL import Image

    from lavis_lite.mini_world.render import render
    from lavis_lite.mini_world.scenes import make_scene
    from lavis_lite.zoo import load_model_and_preprocess

    model, processors, _ = load_model_and_preprocess(f"blip2_{options.llm}", "mini", is_eval=True, device=device)
    pictures = [Image.fromarray(render(make_scene(0, "val", index))) for index in range(options.images)]
    with torch.no_grad():
        pixels = torch.stack([processors["eval"](picture) for picture in pictures]).to(device)
        soft: Tensor = model.embed_image(pixels)  # type: ignore[operator]
    language_model: Any = model.language_model
    prompts = language_model.tokenizer.prompts([model.prompt] * options.images)
    return Work(language_model, soft, prompts, replace(CAPTIONS, min_new_tokens=0))


def build(sizes: dict[str, Any], device: torch.device) -> LanguageModel:
    """The language model with random weights; the end token's logit is END_LOGIT on average."""
    torch.manual_seed(0)
    tokenizer = IdsOnly(sizes["pad_token_id"], sizes["eos_token_id"])
    with torch.device(device):
        model = build_language_model("", sizes=sizes, tokenizer=tokenizer, family="general", precision="fp32")
    layer = model.model.get_output_embeddings()
    weight = torch.randn(layer.weight.shape).to(device)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)  # of its own, not the word embeddings'
    hidden = _hidden_states(model, layer)
    mean = hidden.mean(0)
    weight *= SPREAD / hidden.square().sum(1).mean().sqrt()
    weight[sizes["eos_token_id"]] *= 2
    weight[sizes["eos_token_id"]] += END_LOGIT * mean / mean.square().sum()
    return model


def _hidden_states(model: LanguageModel, layer: torch.nn.Module) -> Tensor:
    """What reaches the output layer while a few texts are generated: float[T,D]."""
    states: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda layer, given: states.append(given[0].flatten(0, -2)))
    short = GenerationConfig(max_new_tokens=6, min_new_tokens=6)
    Work(model, soft_prompts(model, 4), _prompts(model, [4] * 4), short).ours()
    hook.remove()
    return torch.cat(states)


def _prompts(model: LanguageModel, lengths: list[int]) -> list[list[int]]:
    vocabulary = min(30000, int(model.model.config.vocab_size))
    return random_rows(lengths, vocabulary, torch.Generator().manual_seed(1))


def soft_prompts(model: LanguageModel, images: int) -> Tensor:
    """float[U,32,D] of the size of word embeddings."""
    words = model.model.get_input_embeddings().weight
    drawn = torch.randn(images, QUERIES, model.hidden_size, generator=torch.Generator().manual_seed(2))
    return drawn.to(words.device) * words.std()
